import type { ServerResponse } from 'node:http'
import { AppError } from './errors.ts'

/** Problem details of RFC 9457, with our `code` and, for a body that does not fit, all wrong places in `errors`. */
export type Problem = {
  /** path of the page about this code, on the listener that answered: docs/errors/<code>.md */
  type: string
  title: string
  status: number
  detail: string
  code: string
  errors?: readonly { pointer: string; detail: string }[]
}

export const problemType = 'application/problem+json'

export function toProblem(error: AppError): Problem {
  return {
    type: `/errors/${error.code}`,
    title: error.title,
    status: error.status,
    detail: error.message,
    code: error.code,
    ...(error.invalid ? { errors: error.invalid } : {}),
  }
}

export function writeProblem(response: ServerResponse, error: AppError): void {
  if (response.headersSent) {
    response.destroy()
    return
  }
  if (error.retryAfterSeconds !== undefined) response.setHeader('retry-after', String(error.retryAfterSeconds))
  const body = JSON.stringify(toProblem(error))
  response.writeHead(error.status, {
    'content-type': problemType,
    'content-length': Buffer.byteLength(body),
    'cache-control': 'no-store',
  })
  response.end(body)
}

/** Any failure as the problem to show; what we did not foresee becomes `internal`, its cause goes to the log only. */
export function asAppError(error: unknown): AppError {
  if (error instanceof AppError) return error
  return new AppError(
    'internal',
    'Something went wrong here. Try again; if it stays, the log of the control plane tells an admin more.',
    { cause: error },
  )
}
