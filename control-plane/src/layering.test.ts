import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { expect, test } from 'vitest'

// The layers of docs/architecture.md section 2, as rules about imports.

const root = dirname(dirname(import.meta.dirname))

/** Files of a folder, as paths from the root; tests and their helpers may look behind the doors. */
function sources(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile() && entry.name.endsWith('.ts'))
    .map(entry => relative(root, join(entry.parentPath, entry.name)))
    .filter(path => !/\.test\.ts$|\/testing(\.ts$|\/)|\/node_modules\//.test(path))
    .sort()
}

type Import = { from: string; typesOnly: boolean }

function importsOf(path: string): Import[] {
  const text = readFileSync(join(root, path), 'utf8')
  const found: Import[] = []
  for (const [, kind, names, from] of text.matchAll(/^(?:import|export)\s+(type\s+)?([^'"]*?)\s*from\s+'([^']+)'/gm)) {
    const listed = /^\{([\s\S]*)\}$/.exec(names!.trim())?.[1]?.split(',') ?? []
    const allTypes = listed.length > 0 && listed.every(name => name.trim() === '' || name.trim().startsWith('type '))
    found.push({ from: from!, typesOnly: kind !== undefined || allTypes })
  }
  for (const [, from] of text.matchAll(/^import\s+'([^']+)'|\bimport\('([^']+)'\)/gm))
    if (from) found.push({ from, typesOnly: false })
  // a relative import is told by the file it means
  return found.map(one => (one.from.startsWith('.') ? { ...one, from: join(dirname(path), one.from) } : one))
}

const all = {
  'control-plane': sources('control-plane/src'),
  instance: sources('instance/src'),
  simulator: sources('simulator/src'),
}
const everyFile = Object.values(all).flat()
const importersOf = (files: string[], matches: (one: Import, path: string) => boolean) =>
  files.filter(path => importsOf(path).some(one => matches(one, path)))
const readersOf = (files: string[], pattern: RegExp) =>
  files.filter(path =>
    pattern.test(
      readFileSync(join(root, path), 'utf8')
        .replace(/\/\*[\s\S]*?\*\//g, '')
        .replace(/(^|\s)\/\/.*$/gm, ''),
    ),
  )

test('the rules look at real files', () => {
  expect(all['control-plane'].length).toBeGreaterThan(25)
  expect(all.instance.length).toBeGreaterThan(25)
  expect(importsOf('control-plane/src/users.ts')).toContainEqual({ from: 'control-plane/src/db.ts', typesOnly: false })
  expect(importsOf('control-plane/src/users.ts')).toContainEqual({
    from: 'control-plane/src/vault.ts',
    typesOnly: true,
  })
})

test.each([
  ['pg', { 'control-plane': ['src/db.ts'], instance: ['src/tokens/postgres-store.ts'], simulator: [] }],
  ['jose', { 'control-plane': ['src/identity.ts'], instance: ['src/transports/statement.ts'], simulator: [] }],
  ['dockerode', { 'control-plane': ['src/fleet/docker-engine.ts'], instance: [], simulator: [] }],
] as const)('%s has its one door in each package', (library, doors) => {
  for (const [name, expected] of Object.entries(doors)) {
    const importers = importersOf(all[name as keyof typeof all], one => one.from === library)
    expect(importers).toEqual(expected.map((path: string) => `${name}/${path}`))
  }
})

test('ciphers are used in one file of the whole product', () => {
  expect(readersOf(everyFile, /create(C|Dec)ipheriv/)).toEqual(['instance/src/seal.ts'])
})

test('only main.ts and config.ts read the environment', () => {
  const readers = readersOf(
    everyFile,
    /process\s*\.\s*env\b|process\[['"]env|import \{[^}]*\benv\b[^}]*\} from 'node:process'/,
  )
  expect(readers.filter(path => !/\/(main|config)\.ts$/.test(path))).toEqual([])
})

test('main.ts is imported by nobody', () => {
  expect(importersOf(everyFile, one => /\/src\/main\.ts$/.test(one.from))).toEqual([])
})

test('the composition root is opened by main.ts alone: no part takes another one from it', () => {
  const root = 'control-plane/src/control-plane.ts'
  expect(importersOf(everyFile, one => one.from === root)).toEqual(['control-plane/src/main.ts'])
})

test('the instance and the simulator import nothing of the control plane', () => {
  for (const name of ['instance', 'simulator'] as const)
    expect(
      importersOf(
        all[name],
        one => one.from.startsWith('@sdp-mcp/control-plane') || one.from.startsWith('control-plane/'),
      ),
    ).toEqual([])
})

test('the control plane imports of the instance only the contract and the seal', () => {
  const allowed = ['@sdp-mcp/instance/contract', '@sdp-mcp/instance/seal']
  const foreign = importersOf(
    all['control-plane'],
    one =>
      (one.from.startsWith('@sdp-mcp/instance') && !allowed.includes(one.from)) || one.from.startsWith('instance/'),
  )
  expect(foreign).toEqual([])
})

test('the product imports nothing of the simulator or of test helpers', () => {
  const product = [...all['control-plane'], ...all.instance]
  expect(
    importersOf(product, one => /^@sdp-mcp\/simulator|^simulator\/|\/testing(\.ts|\/|$)|^vitest$/.test(one.from)),
  ).toEqual([])
})

test('a relative import never leaves its package', () => {
  const leaving = importersOf(everyFile, ({ from }, path) => {
    const home = path.split('/')[0]!
    return from.includes('/') && !from.startsWith('@') && /\.(ts|json)$/.test(from) && from.split('/')[0] !== home
  })
  expect(leaving).toEqual([])
})

const within = (folder: string) => (one: Import) => one.from.startsWith(`control-plane/src/${folder}/`)
const filesIn = (folder: string) => all['control-plane'].filter(path => path.startsWith(`control-plane/src/${folder}/`))

test('the proxy knows of the fleet only its types', () => {
  expect(filesIn('proxy').length).toBeGreaterThan(2)
  expect(importersOf(filesIn('proxy'), one => within('fleet')(one) && !one.typesOnly)).toEqual([])
})

test('the proxy knows nothing of the admin API, and the fleet neither of the API nor of the proxy', () => {
  expect(importersOf(filesIn('proxy'), within('http'))).toEqual([])
  expect(importersOf(filesIn('fleet'), one => within('http')(one) || within('proxy')(one))).toEqual([])
})

test('domain modules do not know who calls them over HTTP', () => {
  const domain = all['control-plane'].filter(path => /^control-plane\/src\/[a-z-]+\.ts$/.test(path))
  expect(importersOf(domain, one => one.from === 'fastify' || within('http')(one))).toEqual([
    'control-plane/src/app.ts',
  ])
})

test('the proxy knows nothing of MCP', () => {
  expect(importersOf(all['control-plane'], one => one.from.startsWith('@modelcontextprotocol/'))).toEqual([])
  expect(readersOf(filesIn('proxy'), /json-?rpc/i)).toEqual([])
})

/** Who writes which table; more than one where a second module must take part in the same transaction or write-behind. */
const writers: Record<string, RegExp> = {
  users: /^(users|fleet\/instance-table)\.ts$/, // a client that connects starts what an admin had stopped; a move is a generation
  api_keys: /^(api-keys|users|directory)\.ts$/, // removing a user ends its keys; the directory notes their use
  client_fingerprints: /^client-fingerprints\.ts$/,
  instances: /^(fleet\/.*|users\.ts)$/, // starting by hand forgets earlier failures, with the commit of the wish
  data_keys: /^vault\.ts$/,
  signing_keys: /^identity\.ts$/,
  oauth_tokens: /^(users|connections)\.ts$/, // a new user's client and grant code come with the user
  oauth_access_tokens: /^(users|connections)\.ts$/, // a new client or grant makes the old token worthless
  connect_links: /^consent\.ts$/,
  audit_events: /^audit\.ts$/,
  instance_moves: /^fleet\/instance-table\.ts$/,
  instance_activity: /^activity\.ts$/,
  tool_usage: /^usage\.ts$/,
  rollouts: /^rollouts\.ts$/,
  rollout_members: /^rollout(s|-table)\.ts$/,
  image_pins: /^rollout(s|-table)\.ts$/,
  default_image: /^rollouts\.ts$/,
}

test('a table is written by its owner only', () => {
  const strangers: string[] = []
  const statement = new RegExp(`\\b(?:insert into|update|delete from) (${Object.keys(writers).join('|')})\\b`, 'g')
  let seen = 0
  for (const path of all['control-plane'])
    for (const [, table] of readFileSync(join(root, path), 'utf8').matchAll(statement)) {
      seen++
      if (!writers[table!]!.test(path.replace('control-plane/src/', ''))) strangers.push(`${path} writes ${table}`)
    }
  expect(seen).toBeGreaterThan(10)
  expect(strangers).toEqual([])
})
