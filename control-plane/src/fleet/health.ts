import { type Health, health, statementAudience } from '@sdp-mcp/instance/contract'
import { Agent, request } from 'undici'

export interface HealthChecker {
  /**
   * What the process behind an address says of itself, or null when it does not answer within a second or two, or is not
   * the one we mean: its audience tells, so a re-used port or address is never taken for the instance that had it.
   */
  ask(userId: string, at: { address: string; generation: number }, signal?: AbortSignal): Promise<Health | null>
  close(): Promise<void>
}

const answerTimeoutMs = 2_000
const largestAnswerBytes = 64 * 1024

export function createHealthChecker(): HealthChecker {
  const dispatcher = new Agent({
    connect: { timeout: 1_000 },
    headersTimeout: answerTimeoutMs,
    bodyTimeout: answerTimeoutMs,
    maxResponseSize: largestAnswerBytes,
    keepAliveTimeout: 5_000,
  })
  return {
    async ask(userId, { address, generation }, signal) {
      try {
        const { statusCode, body } = await request(`${address}/healthz`, { dispatcher, signal: signal ?? null })
        const answer = health.safeParse(await body.json().catch(() => null))
        return statusCode === 200 && answer.success && answer.data.audience === statementAudience(userId, generation)
          ? answer.data
          : null
      } catch {
        return null
      }
    },
    close: () => dispatcher.destroy(),
  }
}
