import Docker from 'dockerode'
import { connect } from '../support/mcp-client.ts'
import { eventually, type Stack } from '../support/stack.ts'

/**
 * What must hold after any fault: desired equals observed, nothing is orphaned, lost or doubled, every token is there, each
 * valid key works and no other does.
 */

export type Person = { username: string; key: string; mcp: string; sse: string; hasGrant: boolean }

export function createRig({ stack, socket, installation }: { stack: Stack; socket: string; installation: string }) {
  const docker = new Docker({ socketPath: socket })
  const filters = { label: [`com.sdp-mcp.installation=${installation}`] }
  /** who must be served, and keys that must not work any more */
  const people = new Map<string, Person>()
  const deadKeys = new Set<string>()
  const reasons: string[] = []
  const rows: { fault: string; times: number; recoveredMs: number[]; lost: number }[] = []

  const containers = () => docker.listContainers({ all: true, filters })

  /** @throws Error that says what does not hold (yet) */
  async function check(): Promise<void> {
    const problems: string[] = []
    const [users, running, networks] = await Promise.all([
      stack.sql<{ id: string; username: string; generation: string; state: string | null; reason: string | null }>(
        `select u.id, u.username, u.generation, i.state, i.reason_code || ': ' || i.reason as reason
           from users u left join instances i on i.user_id = u.id order by 2`,
      ),
      containers(),
      docker.listNetworks({ filters }),
    ])
    const names = users.map(({ username }) => username).join()
    if (names !== [...people.keys()].sort().join())
      problems.push(`users are ${names} instead of ${[...people.keys()].sort().join()}`)
    for (const { id, username, generation, state, reason } of users) {
      if (state !== 'ready') problems.push(`${username} is ${state} (${reason})`)
      const own = running.filter(one => one.Labels['com.sdp-mcp.user-id'] === id)
      const told = own.map(one => `${one.State} ${one.Labels['com.sdp-mcp.generation']}`).join()
      if (told !== `running ${generation}`)
        problems.push(`${username} has ${told || 'no container'}, wanted ${generation}`)
    }
    const ids = new Set(users.map(({ id }) => id))
    for (const one of running)
      if (!ids.has(one.Labels['com.sdp-mcp.user-id'] ?? '')) problems.push(`${one.Names[0]} belongs to nobody`)
    if (networks.length !== users.length) problems.push(`${networks.length} networks for ${users.length} users`)
    const moves = await stack.sql('select from instance_moves')
    if (moves.length > 0) problems.push(`${moves.length} moves are not over`)
    if (problems.length > 0) throw new Error(problems.join('; '))
  }

  /** Each key gets an answer of its own instance; a dead one gets none. @returns how many that should have did not */
  async function tryKeys(): Promise<number> {
    const served = await Promise.all(
      [...people.values()].map(async ({ username, key, mcp, hasGrant }) => {
        try {
          await using client = await connect('mcp', mcp, key)
          const result = await client.callTool({ name: 'get_my_context', arguments: {} })
          if (!hasGrant || result.isError !== true) return true
          reasons.push(`${username}: ${JSON.stringify(result.content)}`)
        } catch (error) {
          reasons.push(`${username}: ${error}`)
        }
        return false
      }),
    )
    const entered = await Promise.all(
      [...deadKeys].map(
        async key =>
          (await fetch(`${stack.publicUrl}/mcp`, { method: 'POST', headers: { authorization: `Bearer ${key}` } }))
            .status !== 401,
      ),
    )
    if (entered.includes(true)) throw new Error('a key works that should not')
    return served.filter(ok => !ok).length
  }

  return {
    docker,
    people,
    deadKeys,
    containers,
    rows,
    /** why keys did not work that should have */
    reasons,
    /**
     * Lets something go wrong, then waits until all is well again.
     * @param act - ends when the trouble is over; recovery counts from there
     */
    async fault(name: string, act: () => Promise<void>, { withinMs = 60_000 } = {}): Promise<void> {
      await act()
      const since = performance.now()
      await eventually(
        async () => {
          await check()
          return true
        },
        { what: `recovery from "${name}"`, withinMs },
      )
      const recoveredMs = performance.now() - since
      const lost = await tryKeys()
      const row = rows.find(one => one.fault === name) ?? { fault: name, times: 0, recoveredMs: [], lost: 0 }
      if (row.times === 0) rows.push(row)
      row.times++
      row.recoveredMs.push(recoveredMs)
      row.lost += lost
    },
    table(): string {
      const cells = rows.map(({ fault, times, recoveredMs, lost }) => [
        fault,
        String(times),
        `${(Math.max(...recoveredMs) / 1000).toFixed(1)} s`,
        String(lost),
      ])
      const head = ['Fault', 'Times', 'Recovered within', 'Lost']
      const widths = head.map((title, at) => Math.max(title.length, ...cells.map(row => row[at]!.length)))
      const line = (row: string[]) => `| ${row.map((cell, at) => cell.padEnd(widths[at]!)).join(' | ')} |`
      return [line(head), line(widths.map(width => '-'.repeat(width))), ...cells.map(line)].join('\n')
    },
  }
}
