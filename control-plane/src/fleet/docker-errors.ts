import { RuntimeError } from './runtime.ts'

/** What was asked of the engine, to be named in the message when it fails. */
export type EngineRequest = {
  /** continues "while ...", e.g. `creating the network of alice` */
  doing: string
  /** where the engine listens */
  engine: string
  timeoutMs: number
  image?: string
  port?: number
}

/** HTTP status of the engine's answer, if there was one. */
export function engineStatus(error: unknown): number | undefined {
  const of = (value: unknown) => (value as { statusCode?: unknown } | undefined)?.statusCode
  const status = of(error) ?? of((error as { cause?: unknown } | undefined)?.cause)
  return typeof status === 'number' ? status : undefined
}

/** Whether the thing asked for does not exist (any more). */
export const isGone = (error: unknown) => engineStatus(error) === 404

/** Whether a container could not be made or started because the network it is to be on does not exist. */
export const isWithoutNetwork = (error: unknown) => isGone(error) && /network/i.test((error as Error).message)

/** Turns what the Docker client threw into a kind and a sentence with the next step. */
export function toRuntimeError(cause: unknown, request: EngineRequest): RuntimeError {
  if (cause instanceof RuntimeError) return cause
  const { code, name } = cause as { code?: string; name?: string }
  const told = (cause as Error).message?.replace(/^\(HTTP code \d+\) [^-]* - /, '').trim() ?? String(cause)
  const fail = (kind: RuntimeError['kind'], message: string) => new RuntimeError(kind, message, { cause })

  if (engineStatus(cause) === undefined) {
    const { engine, doing, timeoutMs } = request
    if (name === 'TimeoutError' || name === 'AbortError' || code === 'ABORT_ERR')
      return fail(
        'unreachable',
        `The Docker engine at ${engine} did not answer within ${timeoutMs / 1000} s while ${doing}. Check it with: docker info`,
      )
    if (code === 'EACCES' || code === 'EPERM')
      return fail(
        'unreachable',
        `This process may not use the Docker engine at ${engine}. Give its user access, for example by adding it to the group docker.`,
      )
    return fail(
      'unreachable',
      `The Docker engine at ${engine} cannot be reached (${code ?? told}). Start it, or set SDP_DOCKER_SOCKET to where it listens.`,
    )
  }
  if (/no such image/i.test(told))
    return fail(
      'image-missing',
      `The Docker engine has no image ${request.image ?? 'of that name'}. Build it with docker/images.sh, or pull it with: docker pull ${request.image ?? '<image>'}`,
    )
  if (/port is already allocated|address already in use|ports are not available/i.test(told))
    return fail(
      'port-taken',
      `Another program on the Docker host holds port ${request.port ?? ''} of 127.0.0.1. The next free port of SDP_INSTANCE_PORT_RANGE is used instead.`,
    )
  if (/no space left on device/i.test(told))
    return fail(
      'no-space',
      'The disk of the Docker host is full. Free some space (docker system df shows what can go), then try again.',
    )
  if (/pool overlaps|non-overlapping|fully subnetted/i.test(told))
    return fail(
      'network-exhausted',
      'Every subnet of SDP_INSTANCE_NETWORK_POOL is in use. Give the pool a larger network that nothing else uses.',
    )
  return fail('refused', `The Docker engine refused ${request.doing}: ${told.slice(0, 500)}`)
}
