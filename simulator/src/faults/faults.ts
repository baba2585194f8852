import { z } from 'zod'
import { defaultSwitches, type SwitchValues, switchProblem } from './switches.ts'

/** Which exchanges a fault rule is for; everything given must hold. */
const Match = z.strictObject({
  /**
   * Prefix of the path, either whole (`/oauth/v2/token`) or below the API root (`/requests`).
   * A `*` stands for one segment: `/requests/*` + `/notes`.
   */
  path: z.string().startsWith('/').optional(),
  method: z.string().toUpperCase().optional(),
  user: z.string().optional(),
  /** `accounts` is everything below /oauth, `api` everything below /app and /api. */
  server: z.enum(['accounts', 'api']).optional(),
})

const common = {
  match: Match.default({}),
  /** How many matching exchanges it spoils; without it, all until the fault is removed. */
  count: z.int().positive().optional(),
  /** How many matching exchanges it lets pass first. */
  skip: z.int().nonnegative().default(0),
}

/** What can go wrong. `delay` goes on to the normal answer, everything else replaces it. */
export const FaultRule = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('status'),
    status: z.int().min(100).max(599),
    body: z.enum(['json', 'html', 'empty']).default('json'),
    headers: z.record(z.string(), z.string()).default({}),
    ...common,
  }),
  z.strictObject({ kind: z.literal('not-json'), ...common }),
  z.strictObject({ kind: z.literal('delay'), delayMs: z.int().nonnegative(), ...common }),
  z.strictObject({ kind: z.literal('hang'), ...common }),
  z.strictObject({ kind: z.literal('drop'), ...common }),
  /** The work is done, then the connection is cut before the answer. */
  z.strictObject({ kind: z.literal('drop-after'), ...common }),
  /** Half of the answer's body, then the connection is cut. */
  z.strictObject({ kind: z.literal('drop-midway'), ...common }),
  /** 4015; status, lock and Retry-After come from the switches unless given. */
  z.strictObject({
    kind: z.literal('rate-limit'),
    status: z.union([z.literal(400), z.literal(429)]).optional(),
    retryAfterSeconds: z.int().nonnegative().optional(),
    ...common,
  }),
  /** The throttle answer of the token endpoint. */
  z.strictObject({ kind: z.literal('throttle'), ...common }),
])
export type FaultRule = z.output<typeof FaultRule>
export type FaultRuleInput = z.input<typeof FaultRule>

export interface ActiveFault {
  id: string
  rule: FaultRule
  /** Exchanges it spoiled so far. */
  hits: number
  seen: number
}

export interface Exchange {
  path: string
  method: string
  user: string | null
}

function segmentsMatch(pattern: string, path: string): boolean {
  const wanted = pattern.split('/').filter(Boolean)
  const given = path.split('/').filter(Boolean)
  return wanted.length <= given.length && wanted.every((segment, i) => segment === '*' || segment === given[i])
}

function matches(rule: FaultRule, exchange: Exchange): boolean {
  const { path, method, user, server } = rule.match
  const isAccounts = exchange.path.startsWith('/oauth')
  if (server && (server === 'accounts') !== isAccounts) return false
  if (method && method !== exchange.method) return false
  if (user && user !== exchange.user) return false
  if (!path) return true
  const belowApi = /^(?:\/app\/[^/]+)?\/api\/v3(\/.*)$/.exec(exchange.path)?.[1]
  return segmentsMatch(path, exchange.path) || (belowApi !== undefined && segmentsMatch(path, belowApi))
}

/** The simulator's troubles: standing switches and rules that spoil chosen exchanges. */
export class Faults {
  switches: SwitchValues = defaultSwitches()
  private rules: ActiveFault[] = []
  private lastNumber = 0

  /** Adds a rule and returns its id. The rules are tried in the order they came; the first that fits decides. */
  add(input: FaultRuleInput): string {
    this.lastNumber += 1
    const id = `fault-${this.lastNumber}`
    this.rules.push({ id, rule: FaultRule.parse(input), hits: 0, seen: 0 })
    return id
  }

  /**
   * Turns switches.
   * @throws Error naming every switch or value that does not exist; then none is turned
   */
  set(values: Partial<SwitchValues>): void {
    const problems = Object.entries(values).flatMap(([name, value]) => switchProblem(name, value) ?? [])
    if (problems.length > 0) throw new Error(problems.join(' '))
    Object.assign(this.switches, values)
  }

  remove(id: string): boolean {
    const before = this.rules.length
    this.rules = this.rules.filter(active => active.id !== id)
    return this.rules.length < before
  }

  /** Everything back to normal. */
  clear(): void {
    this.rules = []
    this.switches = defaultSwitches()
  }

  list(): ActiveFault[] {
    return this.rules
  }

  /** What spoils this exchange, counting it: every delay that fits together, and the first other rule that fits. */
  take(exchange: Exchange): { delayMs: number; rule?: Exclude<FaultRule, { kind: 'delay' }> } {
    const taken: ReturnType<Faults['take']> = { delayMs: 0 }
    for (const active of this.rules) {
      const { rule } = active
      if (taken.rule && rule.kind !== 'delay') continue
      if (!matches(rule, exchange)) continue
      if (rule.count !== undefined && active.hits >= rule.count) continue
      active.seen += 1
      if (active.seen <= rule.skip) continue
      active.hits += 1
      if (rule.kind === 'delay') taken.delayMs += rule.delayMs
      else taken.rule = rule
    }
    return taken
  }
}
