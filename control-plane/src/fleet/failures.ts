import { AppError, catalogue, type ErrorCode } from '../errors.ts'
import type { Logger } from '../log.ts'
import type { Subject } from './instance-table.ts'
import type { ReasonCode } from './plan.ts'
import { RuntimeError, type RuntimeErrorKind } from './runtime.ts'

/** What goes wrong with an instance: in the words of its state, and of the answer to whoever waits for it. */

const codeOf: Record<RuntimeErrorKind, ReasonCode> = {
  unreachable: 'engine-unreachable',
  'image-missing': 'image-missing',
  'port-taken': 'port-taken',
  'no-space': 'disk-full',
  'network-exhausted': 'network-range-exhausted',
  refused: 'engine-refused',
}

export function asRuntimeError(error: unknown): RuntimeError {
  if (error instanceof RuntimeError) return error
  return new RuntimeError('refused', String((error as Error)?.message ?? error), { cause: error })
}

export function toAppError(error: RuntimeError): AppError {
  const code = codeOf[error.kind]
  return new AppError(code in catalogue ? (code as ErrorCode) : 'instance-failed', error.message, { cause: error })
}

/** For whatever the runtime throws. */
export const rethrow = (error: unknown): never => {
  throw toAppError(asRuntimeError(error))
}

export function whyNotStarted(error: unknown, log: Logger): { code: ReasonCode; reason: string } {
  if (error instanceof RuntimeError) return { code: codeOf[error.kind], reason: error.message }
  if (error instanceof AppError) return { code: error.code, reason: error.message }
  log.error({ error }, 'fleet.start.failed')
  return {
    code: 'internal',
    reason: 'Something went wrong here while it was started. The log of the control plane tells more.',
  }
}

/** What a client hears of an instance in state `failed`. */
export function failureOf({ wanted, row }: Subject, now: number): AppError {
  const code = row?.reasonCode ?? ''
  const known = code in catalogue && catalogue[code as ErrorCode][0] === 503
  const retryAfterSeconds = Math.max(1, Math.ceil(((row?.retryAt?.getTime() ?? 0) - now) / 1000))
  return new AppError(
    known ? (code as ErrorCode) : 'instance-failed',
    `The instance of "${wanted.username}" is not running. ${row?.reason ?? ''}`.trim(),
    { retryAfterSeconds },
  )
}

/** The wait ends because somebody decided otherwise; whoever waited looks again. */
export const superseded = () =>
  new AppError('instance-starting', 'The instance is being replaced. Try again in a moment.', { retryAfterSeconds: 1 })

export const stillStarting = () =>
  new AppError('instance-starting', 'The instance is not ready yet. Try again in a few seconds.', {
    retryAfterSeconds: 2,
  })
