/** A bounded map whose entries expire; the least recently written goes first. Promises may be values. */
export class Cache<V> {
  readonly #entries = new Map<string, { value: V; expiresAt: number }>()
  readonly #size: number
  readonly #maxAgeMs: number
  readonly #now: () => number

  constructor(options: { size: number; maxAgeMs: number; now: () => number }) {
    this.#size = options.size
    this.#maxAgeMs = options.maxAgeMs
    this.#now = options.now
  }

  get(key: string): V | undefined {
    const entry = this.#entries.get(key)
    if (entry && entry.expiresAt > this.#now()) return entry.value
    this.#entries.delete(key)
    return undefined
  }

  set(key: string, value: V, maxAgeMs = this.#maxAgeMs): V {
    this.#entries.delete(key)
    this.#entries.set(key, { value, expiresAt: this.#now() + maxAgeMs })
    const oldest = this.#entries.keys().next()
    if (this.#entries.size > this.#size && !oldest.done) this.#entries.delete(oldest.value)
    return value
  }

  delete(key: string): void {
    this.#entries.delete(key)
  }
}
