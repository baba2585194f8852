import { escapeHtml } from '../html.ts'
import type { OauthClient, Person } from '../state.ts'

const style = `
  body { font: 16px/1.5 system-ui, sans-serif; background: #f4f6f8; color: #1c2430; margin: 0; padding: 3rem 1rem }
  main { max-width: 32rem; margin: auto; background: #fff; border: 1px solid #d5dce4; border-radius: 8px; padding: 2rem }
  h1 { font-size: 1.25rem; margin: 0 0 1rem }
  label { display: block; padding: .25rem 0 }
  code { font-size: .9em }
  button { font: inherit; padding: .5rem 1.25rem; margin: 1rem .5rem 0 0; border-radius: 6px; border: 1px solid #1d6fd8; cursor: pointer }
  button[value=allow] { background: #1d6fd8; color: #fff }
  button[value=deny] { background: #fff; color: #1d6fd8 }`

function page(title: string, body: string): string {
  return `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${title}</title><style>${style}</style></head><body><main>${body}</main></body></html>`
}

/** Asks who signs in and whether the client may have the scopes. Posts back to `/oauth/v2/auth` with the same parameters. */
export function consentPage(
  client: OauthClient,
  people: Person[],
  scopes: string[],
  parameters: Record<string, string>,
): string {
  const hidden = Object.entries(parameters)
    .map(([name, value]) => `<input type="hidden" name="${escapeHtml(name)}" value="${escapeHtml(value)}">`)
    .join('')
  const choices = people
    .map(
      (person, i) =>
        `<label><input type="radio" name="user" value="${escapeHtml(person.username)}"${i === 0 ? ' checked' : ''}> ${escapeHtml(person.name)} &lt;${escapeHtml(person.email)}&gt;</label>`,
    )
    .join('')
  return page(
    'Zoho Accounts (simulated)',
    `<h1>${escapeHtml(client.name)} would like to access the following information</h1>
    <ul>${scopes.map(scope => `<li><code>${escapeHtml(scope)}</code></li>`).join('')}</ul>
    <form method="post" action="/oauth/v2/auth">${hidden}
      <fieldset><legend>Sign in as</legend>${choices}</fieldset>
      <button name="decision" value="allow">Accept</button><button name="decision" value="deny">Reject</button>
    </form>`,
  )
}

/** What Zoho shows instead of redirecting when client or redirect URI are wrong. */
export function consentErrorPage(message: string): string {
  return page('Zoho Accounts (simulated)', `<h1>Error Occurred</h1><p>${escapeHtml(message)}</p>`)
}
