import { spawn } from 'node:child_process'
import { generateKeyPairSync, randomBytes, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { freePort, startTemplateServer } from '@sdp-mcp/migrations/testing'
import { findEngine } from '../../control-plane/evaluation/docker-engine.ts'
import { connect } from '../support/mcp-client.ts'
import { startStack } from '../support/stack.ts'

/**
 * POST /v1/users to the first answered `initialize` through the proxy, against a bare `docker run` of the same image to its
 * first answered request. Rounds alternate; the ratio of the medians is what counts (target: at most 1.5).
 */
export async function provision({ rounds }: { rounds: number }): Promise<void> {
  const engine = await findEngine()
  if (!engine) throw new Error('No Docker engine answers. Start one, or set DOCKER_HOST.')
  const host = `unix://${engine.socket}`
  const server = await startTemplateServer([engine.hostAddress])
  const stack = await startStack({
    installation: 'bench',
    on: { engine: { ...engine, host }, postgres: server.connection },
    environment: { SDP_LOG_LEVEL: 'warn' },
  })
  const image = process.env.SDP_INSTANCE_IMAGE ?? 'sdp-mcp/instance:dev'
  const samples = { added: [] as number[], initialized: [] as number[], bare: [] as number[] }
  try {
    for (let round = 0; round <= rounds; round++) {
      const bare = await bareRun(image, host)
      const user = await addAndInitialize(`user-${round}`)
      // the first round warms caches of both sides
      if (round === 0) continue
      samples.bare.push(bare)
      samples.added.push(user.added)
      samples.initialized.push(user.initialized)
      process.stdout.write(
        `round ${round}/${rounds}: bare ${bare.toFixed(0)} ms, POST answered ${user.added.toFixed(0)} ms, initialize answered ${user.initialized.toFixed(0)} ms\n`,
      )
    }
  } finally {
    await stack[Symbol.asyncDispose]()
    await server.close()
  }

  async function addAndInitialize(username: string) {
    const grant = await stack.simulator.createGrantCode({ user: 'alice' })
    const sdp = { clientId: grant.clientId, clientSecret: grant.clientSecret, grantCode: grant.code }
    const started = performance.now()
    const { body, status } = await stack.admin('POST', '/v1/users', { username, sdp })
    if (status !== 201) throw new Error(`POST answered ${status}: ${JSON.stringify(body)}`)
    const added = performance.now() - started
    const client = await connect('mcp', body.endpoints.mcp, body.apiKey.key)
    const initialized = performance.now() - started
    await client.close()
    await stack.admin('DELETE', `/v1/users/${username}`)
    return { added, initialized }
  }

  const median = (values: number[]) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]!
  const medians = {
    bareMs: median(samples.bare),
    postAnsweredMs: median(samples.added),
    initializedMs: median(samples.initialized),
  }
  const ratio = medians.initializedMs / medians.bareMs
  const report = [
    '| What | Median | Ratio |',
    '|---|---|---|',
    `| bare \`docker run\` to its first answered request | ${medians.bareMs.toFixed(0)} ms | 1 |`,
    `| \`POST /v1/users\` answered | ${medians.postAnsweredMs.toFixed(0)} ms | ${(medians.postAnsweredMs / medians.bareMs).toFixed(2)} |`,
    `| \`POST /v1/users\` to the first answered \`initialize\` through the proxy | ${medians.initializedMs.toFixed(0)} ms | ${ratio.toFixed(2)} (target: at most 1.5) |`,
  ].join('\n')
  process.stdout.write(`\n${report}\n`)
  const folder = join(import.meta.dirname, 'results')
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, 'provision.json'), `${JSON.stringify({ rounds, medians, ratio, samples }, null, 2)}\n`)
  await writeFile(join(folder, 'provision.md'), `${report}\n`)
}

/** `docker run` as a person would type it, without our hardening, until the health request is answered. */
export async function bareRun(image: string, dockerHost: string, { fromStopped = false } = {}): Promise<number> {
  const port = await freePort()
  const name = `sdp-mcp-bench-${randomBytes(4).toString('hex')}`
  const { publicKey } = generateKeyPairSync('ed25519')
  const boot = {
    version: 1,
    user: { id: randomUUID(), username: 'bench', displayName: 'Bench', email: null },
    generation: 1,
    listen: { host: '0.0.0.0', port },
    statementKeys: [{ ...publicKey.export({ format: 'jwk' }), kid: 'bench', alg: 'EdDSA' }],
    database: { host: '127.0.0.1', port: 1, database: 'none', user: 'none', password: 'none' },
    dataKey: randomBytes(32).toString('base64'),
    sdp: {
      dataCenter: 'US',
      portal: 'itdesk',
      baseUrl: 'https://sdp.invalid',
      accountsUrl: 'https://accounts.invalid',
    },
    toolsets: ['core'],
    readOnly: false,
    logLevel: 'silent',
  }
  const environment = { ...process.env, DOCKER_HOST: dockerHost }
  const options = ['-i', '--name', name, '-e', 'SDP_BOOT=stdin', '-p', `127.0.0.1:${port}:${port}`, image]
  if (fromStopped) await once(spawn('docker', ['create', ...options], { env: environment, stdio: 'ignore' }), 'exit')
  const started = performance.now()
  const child = spawn('docker', fromStopped ? ['start', '-i', name] : ['run', '--rm', ...options], {
    env: environment,
    stdio: ['pipe', 'ignore', 'ignore'],
  })
  child.stdin.end(`${JSON.stringify(boot)}\n`)
  try {
    for (const deadline = Date.now() + 30_000; Date.now() < deadline; await delay(5))
      if (
        await fetch(`http://127.0.0.1:${port}/healthz`).then(
          response => response.ok,
          () => false,
        )
      )
        return performance.now() - started
    throw new Error('the bare container did not answer within 30 s')
  } finally {
    const gone = child.exitCode === null ? once(child, 'exit') : undefined
    await once(spawn('docker', ['rm', '-f', name], { env: environment, stdio: 'ignore' }), 'exit')
    await gone
  }
}
