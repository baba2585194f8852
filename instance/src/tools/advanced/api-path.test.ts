import { expect, test } from 'vitest'
import { readableAnswer } from './api-path.ts'

test('an answer keeps what is plain, and loses markup, what shows nothing, and what SDP made of the markup', () => {
  const answer = readableAnswer(
    JSON.parse(`{
      "response_status": { "status": "success" },
      "request": {
        "subject": "1 < 2 \\t& plain", "count": 3, "flag": false, "none": null,
        "description": "<p>Hello <b>you</b></p>", "short_description": "Hello you",
        "named": { "short_description": "in the depth, too", "name": "Caf\\u00e9\\u200b" },
        "__proto__": { "markup": "<p>data, not a prototype</p>" }
      },
      "rows": ["plain", "zero\\u200bwidth", ["<p>deep</p>"], { "at": "<BR>" }]
    }`),
  )
  const untrusted = (text: string) => `<untrusted>\n${text}\n</untrusted>`
  // as it is sent: what is undefined is not
  expect(JSON.parse(JSON.stringify(answer))).toEqual(
    JSON.parse(
      JSON.stringify({
        request: {
          subject: '1 < 2 \t& plain',
          count: 3,
          flag: false,
          none: null,
          description: untrusted('Hello **you**'),
          named: { name: 'Café' },
          ['__proto__']: { markup: untrusted('data, not a prototype') },
        },
        rows: ['plain', 'zerowidth', [untrusted('deep')], { at: '' }],
      }),
    ),
  )
})
