import { spawn } from 'node:child_process'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { Agent, createServer, request as send } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { startTemplateServer } from '@sdp-mcp/migrations/testing'
import { installCompared, loadCore, needPrograms, pin } from '../proxy/machine.ts'
import { startControlPlane, startInstance } from '../proxy/targets.ts'

/**
 * Whether the control plane is transparent: the whole server suite of @modelcontextprotocol/conformance against a sample
 * server on the official SDK, directly and through a control plane that runs the same server as an instance; then a stream
 * that is cut in a call and resumed by Last-Event-ID. Both ways must give the same.
 */
export async function transparency(): Promise<void> {
  needPrograms(['taskset', 'npm'])
  const npmFolder = installCompared()
  pin(process.pid, loadCore)
  const sample = join(import.meta.dirname, 'sample-instance.ts')
  const folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-conformance-'))
  const server = await startTemplateServer()
  try {
    await using stack = new AsyncDisposableStack()
    const instance = await startInstance(sample)
    stack.defer(() => instance.program.stop('SIGKILL'))
    const controlPlane = stack.use(await startControlPlane(server.connection, sample))
    const ways = [
      { name: 'directly', port: instance.port, instancePort: instance.port, path: '/mcp', key: 'none' },
      {
        name: 'through the control plane',
        port: controlPlane.where.port,
        instancePort: controlPlane.direct.port,
        path: '/u/bench/mcp',
        key: controlPlane.where.key,
      },
    ]
    const found = []
    for (const way of ways) {
      // the suite cannot send a key
      await using relay = await addKey(way.port, way.key, way.instancePort)
      const url = `http://127.0.0.1:${relay.port}${way.path}`
      const checks = await conformance(npmFolder, url, join(folder, String(way.port)))
      const resumed = await resume(url)
      found.push({ ...way, checks, resumed })
      const passed = [...checks.values()].filter(status => status === 'SUCCESS').length
      process.stdout.write(
        `${way.name}: ${passed} of ${checks.size} checks succeed; resumed by Last-Event-ID: ${resumed}\n`,
      )
    }
    const [direct, proxied] = found as [(typeof found)[0], (typeof found)[0]]
    const names = [...new Set([...direct.checks.keys(), ...proxied.checks.keys()])].sort()
    const different = names.filter(name => direct.checks.get(name) !== proxied.checks.get(name))
    const report = [
      '| Check | Directly | Through the control plane |',
      '|---|---|---|',
      ...names.map(name => `| ${name} | ${direct.checks.get(name) ?? '-'} | ${proxied.checks.get(name) ?? '-'} |`),
      `| resumption by Last-Event-ID | ${direct.resumed} | ${proxied.resumed} |`,
      '',
      `${names.length} checks, ${different.length} with another result through the control plane${different.length > 0 ? `: ${different.join(', ')}` : ''}.`,
    ].join('\n')
    const results = join(import.meta.dirname, '..', 'results')
    await mkdir(results, { recursive: true })
    await writeFile(join(results, 'transparency.md'), `${report}\n`)
    process.stdout.write(`\n${report}\n`)
  } finally {
    await server.close()
    await rm(folder, { recursive: true, force: true })
  }
}

/** Every check of every scenario with its result; one that is made several times is numbered. */
async function conformance(npmFolder: string, url: string, output: string): Promise<Map<string, string>> {
  const script = join(npmFolder, 'node_modules', '@modelcontextprotocol', 'conformance', 'dist', 'index.js')
  await mkdir(output, { recursive: true })
  const child = spawn(process.execPath, [script, 'server', '--url', url, '--suite', 'all', '--output-dir', output], {
    cwd: output,
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  // it ends with an error when any check fails, and the checks tell more than that
  await new Promise(done => child.once('close', done))
  const checks = new Map<string, string>()
  const files = (await readdir(output, { recursive: true })).filter(name => name.endsWith('checks.json')).sort()
  if (files.length === 0) throw new Error('the conformance suite left no results')
  for (const file of files) {
    const scenario = file
      .split('/')
      .at(-2)!
      .replace(/-\d{4}-\d{2}-\d{2}T.*$/, '')
      .replace(/^server-/, '')
    for (const { id, status } of JSON.parse(await readFile(join(output, file), 'utf8')) as {
      id: string
      status: string
    }[]) {
      let name = `${scenario}: ${id}`
      for (let again = 2; checks.has(name); again++) name = `${scenario}: ${id} ${again}`
      checks.set(name, status)
    }
  }
  return checks
}

/** Calls a tool that cuts its own stream, and comes back for the answer. */
async function resume(url: string): Promise<string> {
  const headers: Record<string, string> = {
    accept: 'application/json, text/event-stream',
    'content-type': 'application/json',
    'mcp-protocol-version': '2025-11-25',
  }
  const post = (body: unknown) =>
    fetch(url, { method: 'POST', headers, body: JSON.stringify({ jsonrpc: '2.0', ...(body as object) }) })
  const clientInfo = { name: 'transparency', version: '1' }
  const params = { protocolVersion: '2025-11-25', capabilities: {}, clientInfo }
  const opened = await post({ id: 0, method: 'initialize', params })
  headers['mcp-session-id'] = opened.headers.get('mcp-session-id') ?? ''
  await opened.text()
  await (await post({ method: 'notifications/initialized' })).text()
  const cut = await (await post({ id: 1, method: 'tools/call', params: { name: 'test_reconnection' } })).text()
  const lastEventId = /^id: (.+)$/m.exec(cut)?.[1]
  if (lastEventId === undefined || cut.includes('"result"')) return `the stream was not cut: ${cut.slice(0, 200)}`
  const response = await fetch(url, {
    headers: { ...headers, 'last-event-id': lastEventId },
    signal: AbortSignal.timeout(5_000),
  })
  let text = ''
  for await (const chunk of response.body!.pipeThrough(new TextDecoderStream())) {
    text += chunk
    if (text.includes('Reconnection test completed successfully')) return 'yes'
  }
  return `no: ${text.slice(0, 200)}`
}

/** A relay that adds a key to each request, as a client with a key would send it. */
async function addKey(port: number, key: string, instancePort: number): Promise<{ port: number } & AsyncDisposable> {
  const agent = new Agent({ keepAlive: true })
  const relay = createServer((request, response) => {
    const headers = { ...request.headers, authorization: `Bearer ${key}` }
    // the suite looks at what becomes of a foreign Host or Origin; only the port is the relay's
    for (const name of ['host', 'origin'] as const) headers[name] &&= headers[name].replace(/:\d+$/, `:${instancePort}`)
    const { method, url: path } = request
    const onward = send({ agent, host: '127.0.0.1', port, method, path, headers }, answer => {
      response.writeHead(answer.statusCode ?? 502, answer.headers)
      response.flushHeaders()
      answer.pipe(response)
      answer.on('error', () => response.destroy())
    })
    onward.on('error', () => response.destroy())
    response.on('close', () => onward.destroy())
    request.pipe(onward)
  })
  await new Promise<void>(done => relay.listen(0, '127.0.0.1', done))
  return {
    port: (relay.address() as AddressInfo).port,
    async [Symbol.asyncDispose]() {
      relay.closeAllConnections()
      relay.close()
      agent.destroy()
    },
  }
}
