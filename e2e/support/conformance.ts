import { spawn } from 'node:child_process'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const command = join(import.meta.dirname, '../node_modules/@modelcontextprotocol/conformance/dist/index.js')

export type Check = { id: string; status: string; errorMessage?: string }

/** The server scenarios that the installed conformance tool has. */
export async function listScenarios(): Promise<string[]> {
  const said = await run(['list', '--server'])
  return [...said.matchAll(/^ {2}- ([\w-]+)/gm)].map(([, name]) => name!)
}

/** Runs every server scenario of the MCP conformance tool. @returns the checks of each scenario */
export async function runConformance(url: string): Promise<Map<string, Check[]>> {
  const folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-conformance-'))
  try {
    const said = await run(['server', '--url', url, '--suite', 'all', '-o', folder])
    const results = new Map<string, Check[]>()
    for (const name of await readdir(folder)) {
      const scenario = /^server-(.+)-\d{4}-\d\d-\d\dT/.exec(name)?.[1]
      if (scenario) results.set(scenario, JSON.parse(await readFile(join(folder, name, 'checks.json'), 'utf8')))
    }
    // it may end before the first scenario, and its exit code does not tell that from a failed one
    if (results.size === 0) throw new Error(`the conformance tool left no results at ${url}:\n${said.slice(-3_000)}`)
    return results
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** Its exit code only says that some scenario failed; the caller reads which. */
function run(args: string[]): Promise<string> {
  return new Promise((done, failed) => {
    const child = spawn(process.execPath, [command, ...args], {
      env: { PATH: process.env.PATH },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let said = ''
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (chunk: string) => {
        said += chunk
      })
    child.once('error', failed)
    child.once('close', () => done(said))
  })
}
