import { describe, expect, it } from 'vitest'
import { all, any, type Condition, type Criterion, criteria, is, isEmpty, narrowed, paging } from './list-info.ts'

const [a, b, c, d] = ['a', 'b', 'c', 'd'].map(field => is(field, 1)) as [Condition, Condition, Condition, Condition]

describe('search criteria', () => {
  it('are absent for no condition', () => {
    expect(criteria(all())).toBeUndefined()
    expect(criteria(any(undefined))).toBeUndefined()
  })

  it('join a flat list with the operator on every element but the first', () => {
    expect(criteria(all(a, b, isEmpty('c')))).toEqual([
      { field: 'a', condition: 'is', value: 1 },
      { field: 'b', condition: 'is', value: 1, logical_operator: 'AND' },
      { field: 'c', condition: 'is', logical_operator: 'AND' },
    ])
  })

  it('send several values as values', () => {
    expect(criteria(is('status.id', '1', '2'))).toEqual([{ field: 'status.id', condition: 'is', values: ['1', '2'] }])
  })

  it('bracket a group under its first test', () => {
    expect(criteria(all(a, any(b, c)))).toEqual([
      { field: 'a', condition: 'is', value: 1 },
      {
        field: 'b',
        condition: 'is',
        value: 1,
        logical_operator: 'AND',
        children: [{ field: 'c', condition: 'is', value: 1, logical_operator: 'OR' }],
      },
    ])
  })

  it('never give the first element of a level an operator, which SDP reads differently together with children', () => {
    const first = criteria(all(any(a, b), any(c, d)))?.[0]
    expect(first).not.toHaveProperty('logical_operator')
    expect(first?.children?.[0]).toHaveProperty('logical_operator', 'OR')
  })

  it('narrow what somebody else wrote, also when the narrowing is an OR', () => {
    const raw = criteria(any(a, b)) ?? []
    const written = narrowed(raw, any(c, d)) ?? []
    for (let bits = 0; bits < 16; bits++) {
      const row = { a: bits & 1, b: (bits >> 1) & 1, c: (bits >> 2) & 1, d: (bits >> 3) & 1 }
      expect(evaluate(written, row)).toBe((row.a === 1 || row.b === 1) && (row.c === 1 || row.d === 1))
    }
    expect(narrowed([], a)).toEqual(criteria(a))
    expect(narrowed(raw, undefined)).toEqual(raw)
  })

  it('mean what the condition means, whatever its shape (seeded random expressions against SDP rules of evaluation)', () => {
    const random = generator(20_250_131)
    for (let round = 0; round < 3_000; round++) {
      const condition = randomCondition(random, 3)
      const written = writable(condition)
      if (!written) continue
      const row = Object.fromEntries(['a', 'b', 'c', 'd', 'e'].map(field => [field, random() < 0.5 ? 1 : 0]))
      expect(evaluate(written, row), JSON.stringify({ condition, row })).toBe(holds(condition, row))
    }
  })
})

it('pages start where the one before ends', () => {
  expect(paging(1, 20)).toEqual({ row_count: 20, start_index: 1 })
  expect(paging(3, 20)).toEqual({ row_count: 20, start_index: 41 })
  expect(paging(2, 500)).toEqual({ row_count: 100, start_index: 101 })
})

function writable(condition: Condition): Criterion[] | undefined {
  try {
    return criteria(condition)
  } catch (error) {
    if (error instanceof RangeError) return undefined
    throw error
  }
}

/** Mulberry32: small, seeded, good enough for tests. */
function generator(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
}

function randomCondition(random: () => number, depth: number): Condition {
  if (depth === 0 || random() < 0.4) return is('abcde'[Math.floor(random() * 5)] ?? 'a', 1)
  const parts = Array.from({ length: 2 + Math.floor(random() * 2) }, () => randomCondition(random, depth - 1))
  return (random() < 0.5 ? all(...parts) : any(...parts)) as Condition
}

function holds(condition: Condition, row: Record<string, number>): boolean {
  if (condition.kind === 'test') return row[condition.field] === condition.value
  return condition.kind === 'all'
    ? condition.parts.every(part => holds(part, row))
    : condition.parts.some(part => holds(part, row))
}

/** Rules 1 and 2 of docs/sdp-api.md 3.3, written down independently of the code under test. */
function evaluate(list: Criterion[], row: Record<string, number>): boolean {
  return list.reduce<boolean | undefined>((left, criterion) => {
    const own = row[criterion.field] === criterion.value
    const group = (criterion.children ?? []).reduce(
      (sum, part) => joined(sum, evaluate([part], row), part.logical_operator),
      own,
    )
    return left === undefined ? group : joined(left, group, criterion.logical_operator)
  }, undefined) as boolean
}

function joined(left: boolean, right: boolean, operator = 'AND'): boolean {
  return operator === 'OR' ? left || right : left && right
}
