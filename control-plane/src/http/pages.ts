import { createHash } from 'node:crypto'
import type { FastifyReply } from 'fastify'

/** Plain pages for people who follow a link: no script, nothing loaded, nothing kept. */

const style = `
body{font:16px/1.5 system-ui,sans-serif;background:#f4f6f8;color:#1c2430;margin:0;padding:3rem 1rem}
main{max-width:34rem;margin:auto;background:#fff;border:1px solid #d5dce4;border-radius:8px;padding:2rem}
h1{font-size:1.3rem;margin:0 0 1rem}
button{font:inherit;padding:.6rem 1.4rem;border:0;border-radius:6px;background:#1d5fbf;color:#fff;cursor:pointer}
button:focus-visible{outline:3px solid #9cc2f5;outline-offset:2px}`
const styleHash = createHash('sha256').update(style).digest('base64')

export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, character => `&#${character.charCodeAt(0)};`)
}

/**
 * @param page.body - HTML; whatever comes from outside must have passed {@link escapeHtml}
 * @param page.formTargets - origins that a form may lead to, beside ours
 */
export function sendPage(
  reply: FastifyReply,
  page: { status: number; title: string; body: string; formTargets?: string[] },
): FastifyReply {
  const title = escapeHtml(page.title)
  return (
    reply
      .code(page.status)
      .header('content-type', 'text/html; charset=utf-8')
      .header(
        'content-security-policy',
        `default-src 'none'; style-src 'sha256-${styleHash}'; form-action ${["'self'", ...(page.formTargets ?? [])].join(' ')}; frame-ancestors 'none'; base-uri 'none'`,
      )
      .header('cache-control', 'no-store')
      // the address holds the link; within our own pages a referrer does no harm
      .header('referrer-policy', 'same-origin')
      .header('x-content-type-options', 'nosniff')
      .header('x-frame-options', 'DENY')
      .serializer((text: string) => text)
      .send(
        `<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${title}</title><style>${style}</style></head><body><main><h1>${title}</h1>${page.body}</main></body></html>\n`,
      )
  )
}
