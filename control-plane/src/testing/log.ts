import { createLog, type Logger } from '../log.ts'

/** A log as the program writes it, kept as text, so that a test can look for what must not be in it. */
export function recordingLog(): { log: Logger; text(): string } {
  const lines: string[] = []
  return {
    log: createLog('trace', { write: (line: string) => void lines.push(line) }),
    text: () => lines.join(''),
  }
}
