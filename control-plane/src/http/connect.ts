import { dataCenterHosts } from '@sdp-mcp/instance/contract'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { type Consent, type ConsentAnswer, linkLifeSeconds } from '../consent.ts'
import { AppError, type ErrorCode } from '../errors.ts'
import { asAppError } from '../problem.ts'
import { escapeHtml, sendPage } from './pages.ts'
import type { App } from './server.ts'

const hidden = { hide: true } as never
/** long enough for a page that is loaded again, e.g. to copy the text for an administrator */
const outcomeSeconds = 300

/** Where a person's browser goes with a connect link, and where Zoho sends it back to. On the public listener. */
export function connectRoutes(app: App, { consent, publicUrl }: { consent: Consent; publicUrl: string }): void {
  const isSecure = publicUrl.startsWith('https:')
  // the prefix keeps a neighbouring http site from setting it
  const [cookieName, outcomeName] = ['sdp_connect', 'sdp_connect_result'].map(name =>
    isSecure ? `__Secure-${name}` : name,
  ) as [string, string]

  app.register(async scope => {
    // the form has no fields
    scope.addContentTypeParser(
      'application/x-www-form-urlencoded',
      { parseAs: 'string', bodyLimit: 1024 },
      (_request, _body, done) => done(null, undefined),
    )
    scope.setErrorHandler((error, request, reply) => {
      const { status, code, message } = told(request, error)
      return failurePage(reply, { status, code, detail: message })
    })

    // What came of it is told at another address: this one holds Zoho's code and our state, which would stay in the address
    // bar, in the history, and in what the person pastes when something went wrong.
    scope.get('/connect/callback', { schema: hidden }, async (request, reply) => {
      const outcome = await consent
        .finish(answerOf(request), cookieOf(request, cookieName))
        .then((connected): Outcome => connected)
        .catch((error: unknown): Outcome => {
          const problem = told(request, error)
          return { status: problem.status, code: problem.code, detail: problem.message }
        })
      const isConnected = 'username' in outcome
      return reply
        .code(303)
        .header('set-cookie', [
          ...(isConnected ? [setCookie(cookieName, '', 0)] : []),
          setCookie(outcomeName, consent.signed(JSON.stringify(outcome)), outcomeSeconds),
        ])
        .header('cache-control', 'no-store')
        .header('referrer-policy', 'no-referrer')
        .header('location', 'result')
        .send()
    })

    scope.get('/connect/result', { schema: hidden }, async (request, reply) => {
      const text = consent.verified(cookieOf(request, outcomeName) ?? '')
      if (text === undefined)
        throw new AppError(
          'connect-link-invalid',
          'There is no result to show any more. If you were told that you are connected, you are done. Otherwise ask your administrator for a new link.',
        )
      const outcome = JSON.parse(text) as Outcome
      if (!('username' in outcome)) return failurePage(reply, outcome)
      return sendPage(reply, {
        status: 200,
        title: 'Connected',
        body: `<p>ServiceDesk Plus is connected for <b>${escapeHtml(outcome.username)}</b>. ${
          outcome.warning === null
            ? 'You can close this page and go on in your MCP client.</p>'
            : `But it does not work yet; tell your administrator:</p><p>${escapeHtml(outcome.warning)}</p>`
        }`,
      })
    })

    scope.get('/connect/:token', { schema: hidden }, async (request, reply) => {
      const { username, displayName, email, accountsUrl } = await consent.look(
        (request.params as { token: string }).token,
      )
      const who = email === null ? escapeHtml(displayName) : `${escapeHtml(displayName)} (${escapeHtml(email)})`
      return sendPage(reply, {
        status: 200,
        title: 'Connect ServiceDesk Plus',
        body: `<p>You are about to let the MCP user <b>${escapeHtml(username)}</b>, ${who}, work in ServiceDesk Plus with <b>your</b> Zoho account. Go on only if this is you, and you asked for this link.</p>
<p>Zoho will ask you to sign in and to agree.</p><form method="post"><button>Continue to Zoho</button></form>`,
        // the redirect that answers the form counts as its target, too, and Zoho may lead on to another data center
        formTargets: [accountsUrl, ...Object.values(dataCenterHosts).map(({ accounts }) => accounts)],
      })
    })

    scope.post('/connect/:token', { schema: hidden }, async (request, reply) => {
      const site = request.headers['sec-fetch-site']
      // a page of somebody else must not press the button
      if (site !== undefined && site !== 'same-origin' && site !== 'none')
        throw new AppError('connect-link-invalid', 'Open the link itself in your browser, then press the button there.')
      const { location, cookie } = await consent.begin(
        (request.params as { token: string }).token,
        cookieOf(request, cookieName),
      )
      return reply
        .code(303)
        .header('set-cookie', setCookie(cookieName, cookie, linkLifeSeconds + 600))
        .header('cache-control', 'no-store')
        .header('referrer-policy', 'no-referrer')
        .header('location', location)
        .send()
    })
  })

  const setCookie = (name: string, value: string, seconds: number) =>
    `${name}=${value}; Path=/connect; Max-Age=${seconds}; HttpOnly; SameSite=Lax${isSecure ? '; Secure' : ''}`
}

/** What came of an answer from Zoho; travels to its page in a signed cookie. */
type Outcome = { username: string; warning: string | null } | Failure
type Failure = { status: number; code: ErrorCode; detail: string }

function told(request: FastifyRequest, error: unknown): AppError {
  const problem = asAppError(error)
  if (problem.status >= 500) request.log.error({ error: problem, requestId: request.id }, 'connect.failed')
  return problem
}

function failurePage(reply: FastifyReply, { status, code, detail }: Failure): FastifyReply {
  return sendPage(reply, {
    status,
    title: code === 'connect-link-invalid' ? 'This link does not work' : 'Not connected',
    body: `<p>${escapeHtml(detail)}</p>`,
  })
}

function cookieOf(request: FastifyRequest, name: string): string | undefined {
  const pairs = (request.headers.cookie ?? '').split(';').map(pair => pair.trim().split('='))
  return pairs.find(([key]) => key === name)?.[1]
}

/** A parameter that comes twice is as good as missing. */
function answerOf(request: FastifyRequest): ConsentAnswer {
  const query = request.query as Record<string, string | string[] | undefined>
  const one = (name: keyof ConsentAnswer) => (typeof query[name] === 'string' ? (query[name] as string) : undefined)
  return {
    state: one('state'),
    code: one('code'),
    error: one('error'),
    location: one('location'),
    'accounts-server': one('accounts-server'),
  }
}
