import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, test } from 'vitest'
import { newUser } from '../control-plane/src/user-schemas.ts'
import { scopesFor } from '../instance/src/contract.ts'
import { conversationsPage, renderConversations } from './conversations.ts'

// What the documents say must be true: their links lead somewhere, their commands exist, their bodies are accepted.

const root = dirname(import.meta.dirname)
const documents = execFileSync('git', ['ls-files', '*.md'], { cwd: root, encoding: 'utf8' }).trim().split('\n')
const read = (path: string) => readFileSync(join(root, path), 'utf8')

test('every relative link of every document leads to a file', () => {
  const broken: string[] = []
  for (const document of documents)
    for (const [, target] of read(document).matchAll(/\]\((?!https?:|mailto:|#)([^)\s#]+)[^)]*\)/g))
      if (!existsSync(join(root, dirname(document), target!))) broken.push(`${document}: ${target}`)
  expect(documents.length).toBeGreaterThan(10)
  expect(broken).toEqual([])
})

test('every npm script and every script file that a document names exists', () => {
  const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> }
  const missing: string[] = []
  for (const document of documents) {
    const text = read(document)
    for (const [, name] of text.matchAll(/\bnpm run ([\w:-]+)/g))
      if (!scripts[name!]) missing.push(`${document}: npm run ${name}`)
    for (const [, path] of text.matchAll(
      /(?:^|[\s`(])(?:\.\/)?((?:docker|compose)\/[\w.-]+\.(?:sh|ts|yaml)|start-user-instance\.sh|bootstrap\.mjs)\b/g,
    ))
      if (!existsSync(join(root, path!))) missing.push(`${document}: ${path}`)
  }
  expect(missing).toEqual([])
})

test('every variable that a document names is one that is read somewhere', () => {
  const source = execFileSync(
    'git',
    ['grep', '-hoE', 'SDP_[A-Z_]+', '--', '*.ts', '*.sh', '*.mjs', '*.yaml', '.env.example'],
    { cwd: root, encoding: 'utf8' },
  )
  const known = new Set(source.trim().split('\n'))
  const unknown: string[] = []
  for (const document of documents)
    for (const [name] of read(document).matchAll(/\bSDP_[A-Z][A-Z_]*[A-Z]\b/g))
      if (!known.has(name) && !known.has(name.replace(/_FILE$/, '')) && name !== 'SDP_MCP_API_KEY')
        unknown.push(`${document}: ${name}`)
  expect(unknown).toEqual([])
})

test('who follows the quick start, or the script for one person alone, enters all scopes of the default tools', () => {
  const scopes = scopesFor(['core'], false).join(',')
  for (const document of ['docs/quick-start.md', 'start-user-instance.sh'])
    expect(read(document), document).toContain(scopes)
})

test('the bodies that the README and the quick start send to add a user are what the API takes', () => {
  let bodies = 0
  for (const document of ['README.md', 'docs/quick-start.md'])
    for (const [, body] of read(document).matchAll(/\/v1\/users \\[\s\S]*?-d '(\{[\s\S]*?\})'/g)) {
      expect(newUser.safeParse(JSON.parse(body!)).error, document).toBeUndefined()
      bodies += 1
    }
  expect(bodies).toBe(2)
})

test('the conversations are what the tools answer (node docs/conversations.ts writes them)', async () => {
  await expect(await renderConversations()).toMatchFileSnapshot(conversationsPage)
})

test('every section of docs/sdp-api.md that the source names is there', () => {
  const page = read('docs/sdp-api.md')
  const quirks = page.slice(page.indexOf('## 18.'), page.indexOf('## 19.'))
  const has = (section: string) => {
    const [chapter, part] = section.split('.')
    if (chapter === '18' && part) return new RegExp(`^${part}\\. `, 'm').test(quirks)
    return part ? page.includes(`**${section} `) : page.includes(`\n## ${chapter}. `)
  }
  const sources = execFileSync('git', ['ls-files', '*.ts'], { cwd: root, encoding: 'utf8' }).trim().split('\n')
  const missing: string[] = []
  let named = 0
  for (const source of sources)
    for (const [, list] of read(source).matchAll(/docs\/sdp-api\.md\s+((?:\d+(?:\.\d+)?(?:, | and )?)+)/g))
      for (const section of list!.split(/, | and /)) {
        named++
        if (section && !has(section)) missing.push(`${source}: ${section}`)
      }
  expect(missing).toEqual([])
  expect(named).toBeGreaterThan(100)
})
