import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { type Browser, chromium } from 'playwright-core'
import { inject } from 'vitest'
import { browserPrograms } from './engine.ts'

/** Path of a browser of the Chromium family; the set-up of the tests installs Debian's when there is none (engine.ts). */
export function findBrowser(): string | undefined {
  const folders = (process.env.PATH ?? '').split(delimiter).concat('/usr/bin')
  return browserPrograms.flatMap(name => folders.map(folder => join(folder, name))).find(path => existsSync(path))
}

/** A real browser without a window. It finds this machine and the simulator, and nothing else in the world. */
export async function launchBrowser(): Promise<Browser> {
  const executablePath = findBrowser()
  if (!executablePath)
    throw new Error('No Chromium is installed. Run the tests with "npm test", which installs one where it can.')
  const known = ['127.0.0.1', 'localhost', inject('engine').hostAddress]
  return chromium.launch({
    executablePath,
    args: [
      // root has no use of the sandbox, and the pages are ours
      '--no-sandbox',
      // in a container /dev/shm is too small for it
      '--disable-dev-shm-usage',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-domain-reliability',
      '--disable-sync',
      '--no-first-run',
      '--no-default-browser-check',
      '--disable-quic',
      `--host-resolver-rules=MAP * ~NOTFOUND${known.map(host => `, EXCLUDE ${host}`).join('')}`,
    ],
  })
}
