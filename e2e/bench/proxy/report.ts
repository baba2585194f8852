import type { Calls, Held } from './measures.ts'

/** What was measured at one target; a list holds one value of each round. */
export type Sheet = {
  calls: Record<string, Calls[]>
  opening: number[]
  headers: number[]
  /** slowest first answer of many clients that came at once */
  burst: number[]
  events: { p50: number; p99: number }[]
  held: Held[]
  death: number[]
  aborts: { stream: number[]; call: number[] }
  large: { fast: number[]; stopped: number[] }
}
export type Sheets = Record<string, Sheet>

export function emptySheet(): Sheet {
  return {
    calls: {},
    opening: [],
    headers: [],
    burst: [],
    events: [],
    held: [],
    death: [],
    aborts: { stream: [], call: [] },
    large: { fast: [], stopped: [] },
  }
}

export function percentile(values: number[], rank: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor((sorted.length * rank) / 100))] ?? Number.NaN
}
export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length / 2
  return ((sorted[Math.ceil(middle) - 1] ?? Number.NaN) + (sorted[Math.floor(middle)] ?? Number.NaN)) / 2
}

const ours = 'sdp-mcp'
/** What we are compared with most: the proxy of JupyterHub, where it takes part. */
const rivalOf = (sheets: Sheets) => ('configurable-http-proxy' in sheets ? 'configurable-http-proxy' : 'bare node')

export type Bar = { what: string; measured: number; bar: string; met: boolean; unit: string }

/** The targets of docs/performance.md, with what this run says about them. */
export function bars(sheets: Sheets): Bar[] {
  const rival = rivalOf(sheets)
  const us = sheets[ours]!
  const chp = sheets[rival]!
  const direct = sheets.direct!
  const of = (sheet: Sheet, key: string, field: keyof Calls) =>
    median((sheet.calls[key] ?? []).map(call => call[field]))
  const list: Bar[] = []
  const atLeast = (what: string, measured: number, bar: number, unit: string) =>
    list.push({ what, measured, bar: `at least ${bar} ${unit}`, met: measured >= bar, unit })
  const atMost = (what: string, measured: number, bar: number, unit: string) =>
    list.push({ what, measured, bar: `at most ${bar} ${unit}`, met: measured <= bar, unit })
  for (const key of ['16', '64'])
    atLeast(
      `calls/s at ${key} connections, against ${rival}`,
      of(us, key, 'perSecond') / of(chp, key, 'perSecond'),
      1.6,
      'times',
    )
  atMost(`p99 at 64 connections, against ${rival}`, of(us, '64', 'p99') / of(chp, '64', 'p99'), 0.5, 'times')
  const added = (sheet: Sheet) => of(sheet, '1', 'p50') - of(direct, '1', 'p50')
  atMost('added latency of a call, p50 at 1 connection', added(us), 0.2, 'ms')
  atMost(`the same, against ${rival}`, added(us) / added(chp), 0.6, 'times')
  atMost(
    'from opening a stream to its first event, p50 over direct',
    median(us.opening) - median(direct.opening),
    0.42,
    'ms',
  )
  for (const held of us.held) atMost(`memory of a held stream, at ${held.streams}`, held.kbPerStream, 20, 'KB')
  const most = us.held.at(-1)
  if (most) atMost(`a call while ${most.streams} streams are held, p99`, most.call.p99, 50, 'ms')
  atMost('an instance dies: its client knows, worst over direct', Math.max(...us.death), 20, 'ms')
  const aborts = [...us.aborts.stream, ...us.aborts.call]
  atMost('a client vanishes: the instance knows, worst', Math.max(...aborts), 100, 'ms')
  return list.filter(({ measured }) => Number.isFinite(measured))
}

const figure = (value: number, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits) : '-')

export function markdown(sheets: Sheets, setting: string): string {
  const rival = rivalOf(sheets)
  const names = Object.keys(sheets)
  const rows = (head: string[], cells: (sheet: Sheet, name: string) => string[] | undefined) => [
    `| | ${head.join(' | ')} |`,
    `|---|${head.map(() => '---:').join('|')}|`,
    ...names.flatMap(name => {
      const row = cells(sheets[name]!, name)
      return row ? [`| ${name === ours ? `**${ours}**` : name} | ${row.join(' | ')} |`] : []
    }),
    '',
  ]
  const called = (sheet: Sheet, key: string, field: keyof Calls) =>
    median((sheet.calls[key] ?? []).map(call => call[field]))
  const callTable = (key: string, title: string) => [
    `### ${title}`,
    '',
    ...rows(['calls/s', 'to direct', `to ${rival}`, 'p50 ms', 'p99 ms', 'CPU ms per 1,000 calls'], sheet => {
      if (!sheet.calls[key]) return undefined
      const perSecond = called(sheet, key, 'perSecond')
      return [
        figure(perSecond, 0),
        figure(perSecond / called(sheets.direct!, key, 'perSecond')),
        figure(perSecond / called(sheets[rival]!, key, 'perSecond')),
        figure(called(sheet, key, 'p50'), 3),
        figure(called(sheet, key, 'p99'), 2),
        figure(called(sheet, key, 'cpuMicrosPerCall'), 0),
      ]
    }),
  ]
  const keys = Object.keys(sheets.direct?.calls ?? {})
  const heldCounts = sheets[ours]!.held.map(({ streams }) => streams)
  return [
    `${setting}`,
    '',
    '### Targets',
    '',
    '| What | Measured | Target | |',
    '|---|---:|---|---|',
    ...bars(sheets).map(
      bar => `| ${bar.what} | ${figure(bar.measured)} ${bar.unit} | ${bar.bar} | ${bar.met ? 'met' : '**not met**'} |`,
    ),
    '',
    ...keys.flatMap(key =>
      callTable(
        key,
        key.endsWith('events')
          ? `Calls answered as event streams, ${key.split(' ')[0]} connections`
          : `JSON-RPC calls, ${key} connection${key === '1' ? '' : 's'}`,
      ),
    ),
    '### Streams',
    '',
    ...rows(
      [
        'first event, p50 ms',
        'headers of a silent stream, p50 ms',
        'event at 500 streams, p50 ms',
        'p99 ms',
        '64 clients at once: slowest first answer, ms',
      ],
      sheet =>
        sheet.opening.length === 0
          ? undefined
          : [
              figure(median(sheet.opening), 3),
              within(median(sheet.headers), '1 s', 3),
              figure(median(sheet.events.map(({ p50 }) => p50))),
              figure(median(sheet.events.map(({ p99 }) => p99))),
              figure(median(sheet.burst), 1),
            ],
    ),
    ...rows(
      heldCounts.flatMap(count => [`KB per stream at ${count}`, `call p99 ms at ${count}`]),
      sheet =>
        sheet.held.length === 0
          ? undefined
          : sheet.held.flatMap(held => [figure(held.kbPerStream, 1), figure(held.call.p99, 1)]),
    ),
    '### Ends, and large answers',
    '',
    ...rows(
      [
        'instance dies: client knows, p50 ms',
        'worst ms',
        'client leaves a stream: instance knows, worst ms',
        'leaves a call, worst ms',
        'memory while 50 MB pass, MB',
        'and nobody reads, MB',
      ],
      sheet =>
        sheet.death.length === 0
          ? undefined
          : [
              figure(median(sheet.death)),
              figure(Math.max(...sheet.death)),
              within(Math.max(...sheet.aborts.stream), '5 s'),
              within(Math.max(...sheet.aborts.call), '5 s'),
              figure(median(sheet.large.fast), 1),
              figure(median(sheet.large.stopped), 1),
            ],
    ),
  ].join('\n')
}

const within = (ms: number, limit: string, digits = 2) =>
  ms === Number.POSITIVE_INFINITY ? `not within ${limit}` : figure(ms, digits)

/** A group of bars for each of the main measures. Plain SVG, readable on light and dark pages. */
export function plot(sheets: Sheets, setting: string): string {
  const names = Object.keys(sheets)
  const called = (name: string, key: string, field: keyof Calls) =>
    median((sheets[name]!.calls[key] ?? []).map(call => call[field]))
  const panels = [
    {
      title: 'JSON-RPC calls/s, 16 connections',
      note: 'more is better',
      digits: 0,
      value: (name: string) => called(name, '16', 'perSecond'),
    },
    {
      title: 'JSON-RPC calls/s, 64 connections',
      note: 'more is better',
      digits: 0,
      value: (name: string) => called(name, '64', 'perSecond'),
    },
    {
      title: 'latency at 1 connection, p50 ms',
      note: 'less is better',
      digits: 3,
      value: (name: string) => called(name, '1', 'p50'),
    },
    {
      title: 'latency at 64 connections, p99 ms',
      note: 'less is better',
      digits: 1,
      value: (name: string) => called(name, '64', 'p99'),
    },
    {
      title: 'CPU of the proxy, ms per 1,000 calls',
      note: 'less is better',
      digits: 0,
      value: (name: string) => (name === 'direct' ? Number.NaN : called(name, '16', 'cpuMicrosPerCall')),
    },
    {
      title: 'memory of a held stream, KB',
      note: 'less is better',
      digits: 1,
      value: (name: string) =>
        name === 'direct' ? Number.NaN : (sheets[name]!.held.at(-1)?.kbPerStream ?? Number.NaN),
    },
  ]
  const [panelWidth, rowHeight, labelWidth, barWidth] = [460, 20, 170, 200]
  const panelHeight = 46 + names.length * rowHeight
  const [width, height] = [panelWidth * 2 + 20, panelHeight * 3 + 40]
  const drawn = panels.map((panel, index) => {
    const [x, y] = [20 + (index % 2) * panelWidth, 36 + Math.floor(index / 2) * panelHeight]
    const values = names.map(panel.value)
    const most = Math.max(...values.filter(Number.isFinite), Number.MIN_VALUE)
    const lines = names.map((name, row) => {
      const value = values[row]!
      const top = y + 12 + row * rowHeight
      const text = `<text x="${x}" y="${top + 12}"${name === ours ? ' font-weight="bold"' : ''}>${name}</text>`
      if (!Number.isFinite(value))
        return `${text}<text x="${x + labelWidth}" y="${top + 12}" opacity="0.6">not compared</text>`
      const length = Math.max(1, (value / most) * barWidth)
      const color = name === ours ? '#2f7d5b' : name === 'direct' ? '#b9bec6' : '#7d93b2'
      return `${text}<rect x="${x + labelWidth}" y="${top + 2}" width="${length.toFixed(1)}" height="13" fill="${color}"/><text x="${(x + labelWidth + length + 6).toFixed(1)}" y="${top + 12}">${value.toFixed(panel.digits)}</text>`
    })
    return `<text x="${x}" y="${y}" font-weight="bold">${panel.title}</text><text x="${x + labelWidth + barWidth}" y="${y}" opacity="0.6" text-anchor="end">${panel.note}</text>${lines.join('')}`
  })
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="system-ui, sans-serif" font-size="12" fill="#24292f">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="20" y="16" opacity="0.7">${setting}</text>
${drawn.join('\n')}
</svg>
`
}
