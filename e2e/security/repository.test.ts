import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { expect, test } from 'vitest'

// No secret in the repository: neither by its shape, nor as a text of much randomness beside a telling name.

const root = dirname(dirname(import.meta.dirname))

/** Every file under version control, or, in an unpacked archive, every file that would be. */
function trackedFiles(): string[] {
  try {
    return execFileSync('git', ['ls-files', '-z'], { cwd: root, encoding: 'utf8', maxBuffer: 64 * 1024 * 1024 })
      .split('\0')
      .filter(Boolean)
  } catch {
    const skipped = new Set(['node_modules', 'dist', '.git', '.node', '.data', 'secrets'])
    const walk = (folder: string): string[] =>
      readdirSync(folder, { withFileTypes: true }).flatMap(entry => {
        if (skipped.has(entry.name)) return []
        const path = join(folder, entry.name)
        return entry.isDirectory() ? walk(path) : entry.isFile() ? [relative(root, path)] : []
      })
    return walk(root)
  }
}

const shapes: Record<string, RegExp> = {
  'a Zoho code or token': /\b1000\.[0-9a-f]{32}\.[0-9a-f]{32}\b/,
  'an API key of ours': /\bsdpmcp_[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])/,
  'a private key': /-----BEGIN [A-Z ]*PRIVATE KEY-----/,
  'a private JWK': /"d"\s*:\s*"[A-Za-z0-9_-]{40,}"/,
  'a JWT': /\beyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{20,}/,
  'a GitHub token': /\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})/,
  'an AWS key': /\b(AKIA|ASIA)[A-Z0-9]{16}\b/,
  'a Slack token': /\bxox[abprs]-[A-Za-z0-9-]{20,}/,
  'an npm token': /\bnpm_[A-Za-z0-9]{36}\b/,
  'an Anthropic key': /\bsk-ant-[A-Za-z0-9_-]{20,}/,
  'a password in a URL': /\b[a-z][a-z0-9+]*:\/\/[^\s:/@'"`$<>{}]+:[^\s:/@'"`$<>{}]{8,}@[a-z0-9.-]+\.[a-z]{2,}/,
}
const assignment =
  /(?:secret|passw(?:or)?d|token|api[_-]?key|master[_-]?key|data[_-]?key|credential)[\w-]*["']?\s*[:=]\s*["'`]?([A-Za-z0-9+/_=-]{24,})/gi

/** Bits of randomness a character: about 3.7 and more is what random hex and base64 have. */
function entropy(text: string): number {
  const counts = new Map<string, number>()
  for (const character of text) counts.set(character, (counts.get(character) ?? 0) + 1)
  let bits = 0
  for (const count of counts.values()) bits -= (count / text.length) * Math.log2(count / text.length)
  return bits
}
const looksRandom = (text: string) =>
  /\d/.test(text) &&
  /[a-zA-Z]/.test(text) &&
  entropy(text) > 3.3 &&
  !/^(\w+[-_])*\w*[a-z]{7,}/i.test(text.replace(/\d.*/, ''))

function findSecrets(text: string): string[] {
  const found = Object.entries(shapes).flatMap(([what, shape]) => (shape.test(text) ? [what] : []))
  for (const [, value] of text.matchAll(assignment)) if (looksRandom(value!)) found.push(`a random value: ${value}`)
  return found
}

/** Values of tests that stand for secrets and open nothing. */
const testSecrets = [/3q2\+7wABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhs=/, /admin-token-Zq81/]
const stands: Record<string, RegExp[]> = {
  'control-plane/src/testing/config.ts': testSecrets,
  'control-plane/src/config.test.ts': testSecrets,
  'control-plane/src/environment-example.test.ts': testSecrets,
  // addresses with a password in them, to be refused
  'control-plane/src/sdp-settings.test.ts': [/^a password in a URL$/],
  'control-plane/src/fleet/testing/support.ts': [/ZGF0YS1rZXktb2YtdGhlLXVzZXItMzItYnl0ZXMhIQ==/],
}

test('no file under version control holds a secret', () => {
  const files = trackedFiles()
  expect(files.length).toBeGreaterThan(200)
  const problems: string[] = []
  for (const path of files) {
    const full = join(root, path)
    const size = statSync(full, { throwIfNoEntry: false })
    if (!size?.isFile() || size.size > 2_000_000 || path === 'pnpm-lock.yaml') continue
    const bytes = readFileSync(full)
    if (bytes.includes(0)) continue
    for (const what of findSecrets(bytes.toString('utf8')))
      if (!stands[path]?.some(known => known.test(what))) problems.push(`${path}: ${what}`)
  }
  expect(problems).toEqual([])
})

test('no file that is made to hold secrets is under version control', () => {
  const wrong =
    /(^|\/)(\.env(\.(?!example$)[^/]+)?|[^/]*\.(pem|key|p12|pfx|jks|kdbx|dump)|id_(rsa|ed25519)|\.npmrc|\.netrc|master_keys?(_old)?|admin_token|db_password)$|(^|\/)secrets\//
  // a link that only names where the settings are
  const links = trackedFiles().filter(path => wrong.test(path) && path !== 'compose/.env')
  expect(links).toEqual([])
})

test('the scanner finds what it looks for', () => {
  const hex = '9f86d081884c7d659a2feaa0c55ad015'
  for (const planted of [
    `grant: 1000.${hex}.${hex}`,
    `sdpmcp_${'aB3_'.repeat(10)}xyz`,
    `-----BEGIN ${'EC PRIVATE'} KEY-----`,
    `{"kty":"OKP","d":"${'nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A'}"}`,
    `ghp_${'a1B2'.repeat(9)}`,
    `postgres://service:${'hunter2hunter2'}@db.example.com/x`,
    `SDP_MASTER_KEY=${'q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA='}`,
    `clientSecret: '${`${hex}0a1b2c3d4e`}'`,
    `"password": "${'Xk2mP9vQ7tR4wZ8nB5cD1fG6'}"`,
  ])
    expect(findSecrets(planted), planted).not.toEqual([])
  for (const harmless of [
    'SDP_MASTER_KEY=',
    "token: 'an-access-token-for-the-first-test'",
    'password: config.database.password.reveal()',
    'Authorization: Bearer sdpmcp_...',
  ])
    expect(findSecrets(harmless), harmless).toEqual([])
})
