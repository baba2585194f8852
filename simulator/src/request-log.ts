/** One exchange as a test or an evaluator wants to see it. No token, code or secret ever enters. */
export interface LogEntry {
  /** 1, 2, 3 ...; the control API's `since` counts these. */
  number: number
  at: number
  method: string
  /** Path without query. */
  path: string
  /** The HTTP status sent; 0 when the connection was dropped or left hanging. */
  status: number
  /** The username behind the token or client, if known. */
  user: string | null
  durationMs: number
  /** The parsed `input_data` of an API call. */
  input?: unknown
  /** `refresh_token`, `authorization_code` or `client_credentials` for token calls. */
  grantType?: string
}

/** The last `capacity` exchanges, oldest first. */
export class RequestLog {
  private entries: LogEntry[] = []
  private last = 0
  private readonly capacity: number

  constructor(capacity = 20_000) {
    this.capacity = capacity
  }

  add(entry: Omit<LogEntry, 'number'>): void {
    this.last += 1
    this.entries.push({ number: this.last, ...entry })
    if (this.entries.length > this.capacity) this.entries.splice(0, this.entries.length - this.capacity)
  }

  /** Entries with a number above `since`. */
  list(since = 0): LogEntry[] {
    return this.entries.filter(entry => entry.number > since)
  }

  filter(test: (entry: LogEntry) => boolean): LogEntry[] {
    return this.entries.filter(test)
  }

  some(test: (entry: LogEntry) => boolean): boolean {
    return this.entries.some(test)
  }

  clear(): void {
    this.entries = []
  }
}
