import { describe, expect, it } from 'vitest'
import { bulkVerdicts, failure, isSuccess } from './envelope.ts'

const ok = { status_code: 2000, status: 'success' }

describe('the verdict of an answer', () => {
  it.each([
    ['an object', { response_status: ok }, true],
    ['an array of one', { response_status: [ok] }, true],
    [
      'success with a message',
      { response_status: { ...ok, messages: [{ status_code: 2000, type: 'success', message: 'closed' }] } },
      true,
    ],
    ['the old code 200', { response_status: { status_code: 200, status: 'success' } }, true],
    ['no verdict', { requests: [] }, true],
    ['3000 with the text success', { response_status: { status_code: 3000, status: 'success' } }, false],
    [
      '3000 inside',
      { response_status: { status_code: 2000, messages: [{ status_code: 3000, type: 'warning' }] } },
      false,
    ],
    ['one failed of two', { response_status: [ok, { status_code: 4001, status: 'failed' }] }, false],
    ['failed with code 2000', { response_status: { status_code: 2000, status: 'failed' } }, false],
    ['a failed message under success', { response_status: { ...ok, messages: [{ type: 'failed' }] } }, false],
  ])('%s', (_case, body, expected) => {
    expect(isSuccess(body)).toBe(expected)
  })

  it('tells the words of the site without half of a character', () => {
    const body = {
      response_status: {
        status_code: 4001,
        status: 'failed',
        messages: [{ status_code: 4001, message: `${'x'.repeat(299)}😀` }],
      },
    }
    expect(failure(400, body, {}).details.said).toBe('x'.repeat(299))
    body.response_status.messages[0]!.message = 'x\ud83d'
    expect(failure(400, body, {}).details.said?.isWellFormed()).toBe(true)
  })

  it('names each record of a bulk operation', () => {
    const body = {
      response_status: [
        { ...ok, id: '1' },
        { status_code: 4000, status: 'failed', id: '2', messages: [{ status_code: 4001, message: 'gone' }] },
      ],
    }
    expect(bulkVerdicts(body)).toEqual([
      { id: '1', ok: true, said: '' },
      { id: '2', ok: false, said: 'gone' },
    ])
  })
})

describe('the kind of a failure', () => {
  const failed = (message: object) => ({
    response_status: { status_code: 4000, status: 'failed', messages: [message] },
  })
  it.each([
    [400, { status_code: 4012, fields: ['category'] }, 'mandatory'],
    [400, { status_code: 4001, field: 'requester' }, 'invalid-value'],
    [403, { status_code: 4002, field: 'priority' }, 'denied'],
    [404, { status_code: 4007 }, 'not-found'],
    [400, { status_code: 4008, field: 'name' }, 'conflict'],
    [400, { status_code: 4014, field: 'id' }, 'denied'],
    [400, { status_code: 4015 }, 'limited'],
    [429, { status_code: 4015 }, 'limited'],
    [400, { message: 'URL blocked as maximum access limit for the page is exceeded.' }, 'limited'],
    [500, { status_code: 4004 }, 'down'],
    [400, { message: 'EXTRA_KEY_FOUND_IN_JSON', field: 'x' }, 'invalid-value'],
    [401, { message: 'UNAUTHORISED' }, 'missing-scope'],
  ])('%i with %o is %s', (status, message, kind) => {
    const error = failure(status, failed(message), {})
    expect(error.kind).toBe(kind)
    expect(error.fields).toEqual(
      [message].flatMap(part => ('fields' in part ? part.fields : 'field' in part ? [part.field] : [])),
    )
  })

  it.each([
    [200, 'drift'],
    [302, 'drift'],
    [401, 'missing-scope'],
    [400, 'invalid-value'],
    [502, 'down'],
  ])('HTML with %i is %s', (status, kind) => {
    expect(failure(status, undefined, {}).kind).toBe(kind)
  })

  it('reads the code from the outer place too', () => {
    expect(failure(404, { response_status: { status_code: 4007, status: 'failed' } }, {}).details.statusCode).toBe(4007)
  })
})
