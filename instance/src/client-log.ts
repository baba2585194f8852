import type { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import {
  type LoggingLevel,
  LoggingLevelSchema,
  type ServerNotification,
  SetLevelRequestSchema,
} from '@modelcontextprotocol/sdk/types.js'

type Sender = { sendNotification?: (notification: ServerNotification) => Promise<void> }

/** Log messages to the client, for who looks into why an answer took long or failed. */
export interface ClientLog {
  /** Sends on the stream of the call it is about; silent until the client asks with logging/setLevel. */
  tell(call: Sender, level: LoggingLevel, data: Record<string, unknown>): Promise<void>
}

const severity = LoggingLevelSchema.options

/**
 * Offers `logging` to one session's client. Nothing is sent before the client sets a level: to one that did not ask,
 * messages are noise. No bodies and no tokens are told, as in our own log.
 */
export function createClientLog(mcp: McpServer): ClientLog {
  let least: LoggingLevel | undefined
  mcp.server.registerCapabilities({ logging: {} })
  mcp.server.setRequestHandler(SetLevelRequestSchema, ({ params }) => {
    least = params.level
    return {}
  })
  return {
    async tell(call, level, data) {
      if (least === undefined || severity.indexOf(level) < severity.indexOf(least)) return
      // a client that is gone needs no log, and its call must not fail for it
      await call
        .sendNotification?.({ method: 'notifications/message', params: { level, logger: 'sdp-mcp', data } })
        .catch(() => {})
    },
  }
}
