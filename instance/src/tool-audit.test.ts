import { pino } from 'pino'
import { expect, test, vi } from 'vitest'
import { type AuditedCall, createToolAudit, type LostCalls } from './tool-audit.ts'

const call = (tool: string) => ({ tool, outcome: 'ok', durationMs: 1, sdpCalls: 1, requestId: tool })
const log = pino({ level: 'silent' })
type Row = AuditedCall | LostCalls
const names = (rows: readonly Row[]) => rows.map(row => ('lost' in row ? `lost ${row.lost}` : row.tool))

test('calls are written in order, together, without waiting for the database', async () => {
  const batches: Row[][] = []
  const audit = createToolAudit({
    write: async batch => void batches.push([...batch]),
    log,
    gatherMs: 20,
    now: () => 7,
  })
  audit.record(call('a'))
  audit.record(call('b'))
  expect(batches).toEqual([])
  await vi.waitFor(() => expect(batches).toHaveLength(1))
  expect(batches[0]).toEqual([
    { at: 7, ...call('a') },
    { at: 7, ...call('b') },
  ])
  await audit.close()
})

test('a batch that could not be written is written again, once, before what came later', async () => {
  const written: Row[] = []
  let failing = 1
  const audit = createToolAudit({
    async write(batch) {
      if (failing-- > 0) throw new Error('the database is away')
      written.push(...batch)
    },
    log,
    gatherMs: 5,
  })
  audit.record(call('a'))
  await new Promise(done => setTimeout(done, 50))
  audit.record(call('b'))
  await vi.waitFor(() => expect(names(written)).toEqual(['a', 'b']), { timeout: 10_000 })
  await audit.close()
})

test('while the database stays away memory is bounded, and how many calls were dropped is recorded', async () => {
  const written: Row[] = []
  let isAway = true
  const audit = createToolAudit({
    async write(batch) {
      if (isAway) throw new Error('the database is away')
      written.push(...batch)
    },
    log,
    gatherMs: 5,
  })
  for (let i = 0; i < 5_000; i++) audit.record(call(`t${i}`))
  isAway = false
  await audit.close()
  expect(names(written)[0]).toBe('lost 3000')
  expect(names(written).slice(1)).toEqual(Array.from({ length: 2_000 }, (_, i) => `t${i + 3_000}`))
})

test('closing writes what is left, and does not wait for a database that hangs', async () => {
  const written: Row[] = []
  const good = createToolAudit({ write: async batch => void written.push(...batch), log })
  for (let i = 0; i < 450; i++) good.record(call(`t${i}`))
  await good.close()
  expect(written).toHaveLength(450)

  const hanging = createToolAudit({ write: () => new Promise(() => {}), log, gatherMs: 1 })
  hanging.record(call('a'))
  await new Promise(done => setTimeout(done, 20))
  const startedAt = performance.now()
  await hanging.close(100)
  expect(performance.now() - startedAt).toBeLessThan(5_000)
})
