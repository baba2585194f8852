import { describe, expect, it } from 'vitest'
import { AuthorizationError } from '../context.ts'
import { SdpError } from '../sdp/errors.ts'
import { compact, cutToBudget, describeFailure, estimateTokens, render, success } from './result.ts'

describe('a result', () => {
  it('has no nulls and no empty parts, but keeps false, zero and "none"', () => {
    expect(
      compact({ a: null, b: '', c: [], d: {}, e: { f: undefined }, g: false, h: 0, i: 'none', j: [null, 1] }),
    ).toEqual({
      g: false,
      h: 0,
      i: 'none',
      j: [1],
    })
  })

  it('drops rows from the end of the longest list until it fits, and says so', () => {
    const data = {
      requests: Array.from({ length: 500 }, (_, index) => ({ id: String(index), subject: 'x'.repeat(100) })),
      total: 500,
    }
    const cut = cutToBudget(data, 6_000, 'ask for page 2')
    expect(estimateTokens(JSON.stringify(cut))).toBeLessThanOrEqual(6_000)
    const rows = cut.requests as { id: string }[]
    expect(rows.length).toBeGreaterThan(50)
    expect(rows[0]?.id).toBe('0')
    expect(cut.cut).toEqual([`requests: ${rows.length} of 500 rows shown; ask for page 2`])
    expect(cut.total).toBe(500)
  })

  it('cuts a long text with a mark and closes the data mark again', () => {
    const cut = cutToBudget({ id: '1', description: `<untrusted>\n${'word '.repeat(20_000)}\n</untrusted>` }, 6_000)
    expect(estimateTokens(JSON.stringify(cut))).toBeLessThanOrEqual(6_000)
    expect(cut.description).toMatch(/… \[cut\]<\/untrusted>$/)
    expect(cut.id).toBe('1')
  })

  it('stays under the hard stop in scripts that cost more tokens', () => {
    const result = success({ data: { text: '密'.repeat(60_000) }, budget: 'large' })
    expect(estimateTokens(JSON.stringify(result.structuredContent))).toBeLessThan(10_000)
  })

  it('reads well as text', () => {
    expect(
      render({
        number: '57',
        requests: [
          { id: '1', subject: 'a' },
          { id: '2', note: 'x\ny' },
        ],
        connection: { state: 'connected' },
      }),
    ).toBe('number: 57\nrequests:\n- id: 1 | subject: a\n- id: 2\n  note:\nx\ny\nconnection:\n  state: connected')
  })
})

describe('a failure says what to do next', () => {
  const context = { authorizationSteps: 'STEPS', isWrite: true, reference: 'abc' }

  it('with fields, allowed values and the raw code', () => {
    const error = new SdpError('invalid-value', 'There is no priority "Hihg".', {
      fields: ['priority'],
      allowed: ['High'],
      httpStatus: 400,
      statusCode: 4001,
      said: 'bad',
    })
    expect(describeFailure(error, context).text).toBe(
      'There is no priority "Hihg".\nField: priority\nAllowed or close: High\nServiceDesk Plus said: HTTP 400, status code 4001: "bad"\nNext: Look up the allowed values with list_field_options (or get_form_fields for field types) and send again.',
    )
  })

  it('with the steps to authorize when consent is lost', () => {
    expect(describeFailure(new AuthorizationError('needs-reauthorization', 'Gone.', 'x'), context).text).toBe(
      'Gone.\nNext: STEPS',
    )
  })

  it('without inner details when we are broken', () => {
    const { text, kind } = describeFailure(new TypeError('secret internals'), context)
    expect(kind).toBe('internal')
    expect(text).toContain('abc')
    expect(text).not.toContain('secret')
  })
})
