import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { cloneDatabase, type DatabaseConnection, freePort } from '@sdp-mcp/migrations/testing'
import { childrenOf, listening, loadCore, openFilesLimit, type Program, pin, proxyCore, start } from './machine.ts'
import { clientHeaders, message, type Where } from './wire.ts'

/** One way to the fixture instance. */
export type Target = AsyncDisposable & {
  name: string
  where: Where
  /** its instance, without anything between */
  direct: Where
  /** processes whose CPU time and memory count */
  pids(): number[]
  /** path of a JSON-RPC call; some endpoints ask for a session */
  call: { path: string; headers: Record<string, string> }
  /** false: only JSON-RPC calls compare */
  streams: boolean
  /** a second way, to an instance that may be killed */
  victim(): Promise<Victim>
}
export type Victim = { where: Where; direct: Where; pid: number; kill(): Promise<void> }

export type Instance = { port: number; program: Program }

const here = import.meta.dirname
const root = join(here, '..', '..', '..')
const node = process.execPath

const fixture = join(here, 'fixture.ts')

/** An instance that serves everybody. */
export async function startInstance(): Promise<Instance> {
  const at = await freePort()
  const program = start(node, [fixture, String(at)], { core: loadCore })
  await listening(at, program, 'the fixture instance')
  return { port: at, program }
}

type Setting = { instance: Instance; postgres: DatabaseConnection; npmFolder: string }
export type TargetName =
  | 'direct'
  | 'sdp-mcp'
  | 'configurable-http-proxy'
  | 'nginx'
  | 'haproxy'
  | 'bare node'
  | 'supergateway'

export const starters: Record<TargetName, (setting: Setting) => Promise<Target>> = {
  async direct({ instance }) {
    return simple('direct', instance.port, instance.port, { program: instance.program, keep: true })
  },

  'sdp-mcp': ({ postgres }) => startControlPlane(postgres),

  async 'configurable-http-proxy'({ instance, npmFolder }) {
    const name = 'configurable-http-proxy'
    return perInstance(name, instance, async upstream => {
      const [port, apiPort] = [await freePort(), await freePort()]
      const script = join(npmFolder, 'node_modules', name, 'bin', name)
      const options = ['--ip', '127.0.0.1', '--port', port, '--api-ip', '127.0.0.1', '--api-port', apiPort]
      const program = start(node, [script, ...options.map(String), '--log-level', 'error'])
      await listening(port, program, name)
      await listening(apiPort, program, name)
      const added = await fetch(`http://127.0.0.1:${apiPort}/api/routes/u/bench`, {
        method: 'POST',
        body: JSON.stringify({ target: `http://127.0.0.1:${upstream}` }),
      })
      if (!added.ok) throw new Error(`${name} did not take the route: ${added.status}`)
      return { port, program }
    })
  },

  async nginx({ instance }) {
    return perInstance('nginx', instance, async upstream => {
      const [port, folder] = [await freePort(), await mkdtemp(join(tmpdir(), 'sdp-mcp-bench-nginx-'))]
      await mkdir(join(folder, 'logs'))
      await writeFile(join(folder, 'nginx.conf'), nginxConf(port, upstream, folder))
      const program = start('nginx', ['-p', folder, '-c', join(folder, 'nginx.conf'), '-e', 'stderr'])
      await listening(port, program, 'nginx')
      const [worker] = childrenOf(program.pid)
      return { port, program, pids: () => [worker as number], folder }
    })
  },

  async haproxy({ instance }) {
    return perInstance('haproxy', instance, async upstream => {
      const [port, folder] = [await freePort(), await mkdtemp(join(tmpdir(), 'sdp-mcp-bench-haproxy-'))]
      await writeFile(join(folder, 'haproxy.cfg'), haproxyConf(port, upstream))
      const program = start('haproxy', ['-db', '-f', join(folder, 'haproxy.cfg')])
      await listening(port, program, 'haproxy')
      return { port, program, folder }
    })
  },

  async 'bare node'({ instance }) {
    return perInstance('bare node', instance, async upstream => {
      const port = await freePort()
      const program = start(node, [join(here, 'floor.ts'), String(port), String(upstream)])
      await listening(port, program, 'the bare Node proxy')
      return { port, program }
    })
  },

  async supergateway({ npmFolder }) {
    const port = await freePort()
    const script = join(npmFolder, 'node_modules', 'supergateway', 'dist', 'index.js')
    const stdio = `${node} ${join(here, 'stdio-fixture.ts')}`
    const options = ['--outputTransport', 'streamableHttp', '--stateful', '--logLevel', 'none']
    const program = start(node, [script, '--stdio', stdio, ...options, '--port', String(port)])
    await listening(port, program, 'supergateway')
    const session = await openSession(port)
    return {
      ...simple('supergateway', port, port, { program }),
      pids: () => [program.pid, ...childrenOf(program.pid)],
      call: { path: '/mcp', headers: { ...clientHeaders('none'), 'mcp-session-id': session } },
      streams: false,
    }
  },
}

type Started = { port: number; program: Program; pids?: () => number[]; folder?: string; keep?: boolean }

function simple(
  name: string,
  port: number,
  upstream: number,
  { program, pids, folder, keep }: Omit<Started, 'port'>,
): Target {
  const where = { port, prefix: '/u/bench', key: 'none' }
  return {
    name,
    where,
    direct: { ...where, port: upstream },
    pids: pids ?? (() => [program.pid]),
    call: { path: '/u/bench/mcp', headers: clientHeaders('none') },
    streams: true,
    async victim() {
      const instance = await startInstance()
      const at = { ...where, port: instance.port }
      return { where: at, direct: at, pid: instance.program.pid, kill: () => instance.program.stop('SIGKILL') }
    },
    async [Symbol.asyncDispose]() {
      if (!keep) await program.stop()
      if (folder) await rm(folder, { recursive: true, force: true })
    },
  }
}

/** A proxy that leads to one instance; another one of it leads to the victim. */
async function perInstance(
  name: string,
  instance: Instance,
  startProxy: (upstream: number) => Promise<Started>,
): Promise<Target> {
  const { port, ...rest } = await startProxy(instance.port)
  const target = simple(name, port, instance.port, rest)
  return {
    ...target,
    async victim() {
      const victim = await startInstance()
      const { port: at, ...proxy } = await startProxy(victim.port)
      return {
        where: { ...target.where, port: at },
        direct: { ...target.where, port: victim.port },
        pid: victim.program.pid,
        async kill() {
          await victim.program.stop('SIGKILL')
          await simple(name, at, victim.port, proxy)[Symbol.asyncDispose]()
        },
      }
    },
  }
}

/** The whole control plane with its database, run from source; instances are child processes that answer as fixed. */
export async function startControlPlane(postgres: DatabaseConnection): Promise<Target> {
  const database = await cloneDatabase(postgres)
  const [port, adminPort, adminToken] = [await freePort(), await freePort(), randomBytes(32).toString('base64url')]
  const firstPort = 43_000 + Math.floor(Math.random() * 50) * 100
  const program = start(node, [join(root, 'control-plane/src/main.ts')], {
    environment: {
      SDP_HTTP_HOST: '127.0.0.1',
      SDP_HTTP_PORT: String(port),
      SDP_ADMIN_PORT: String(adminPort),
      SDP_ADMIN_TOKEN: adminToken,
      SDP_MASTER_KEY: randomBytes(32).toString('base64'),
      SDP_DB_HOST: database.host,
      SDP_DB_PORT: String(database.port),
      SDP_DB_NAME: database.database,
      SDP_DB_USER: database.user,
      SDP_DB_PASSWORD: database.password,
      SDP_RUNTIME: 'process',
      SDP_INSTANCE_ENTRY: fixture,
      SDP_INSTANCE_PORT_RANGE: `${firstPort}-${firstPort + 99}`,
      SDP_INSTALLATION: 'bench',
      // limits are counted, and not reached
      SDP_USER_REQUESTS_PER_SECOND: '100000',
      SDP_USER_BURST: '100000',
      SDP_USER_CONCURRENT_REQUESTS: '100000',
      SDP_INSTANCE_NAME: 'itdesk',
      SDP_CLIENT_ID: 'bench',
      SDP_CLIENT_SECRET: 'bench',
      // other flags to try, or --cpu-prof --cpu-prof-dir=... to see where the time goes
      NODE_OPTIONS: process.env.SDP_BENCH_NODE_OPTIONS ?? (await imageFlags('control-plane')),
    },
  })
  // it listens for users first
  await listening(adminPort, program, 'the control plane')

  async function addUser(username: string) {
    const response = await fetch(`http://127.0.0.1:${adminPort}/v1/users`, {
      method: 'POST',
      headers: { authorization: `Bearer ${adminToken}`, 'content-type': 'application/json', prefer: 'wait=60' },
      body: JSON.stringify({ username }),
    })
    const answer = (await response.json()) as {
      user: { instance: { state: string; port: number; containerId: string } }
      apiKey: { key: string }
    }
    if (response.status !== 201 || answer.user.instance.state !== 'ready')
      throw new Error(`the control plane did not add ${username}: ${JSON.stringify(answer)}\n${program.output()}`)
    const { instance } = answer.user
    const pid = Number(instance.containerId)
    // it was started from the core of the control plane
    pin(pid, loadCore)
    return { where: { port, prefix: `/u/${username}`, key: answer.apiKey.key }, port: instance.port, pid }
  }

  const bench = await addUser('bench')
  pin(program.pid, proxyCore)
  let victims = 0
  return {
    ...simple('sdp-mcp', port, port, { program }),
    where: bench.where,
    direct: { port: bench.port, prefix: '/direct', key: 'none' },
    call: { path: '/u/bench/mcp', headers: clientHeaders(bench.where.key) },
    async victim() {
      const victim = await addUser(`victim-${++victims}`)
      return {
        where: victim.where,
        direct: { port: victim.port, prefix: '/direct', key: 'none' },
        pid: victim.pid,
        async kill() {
          process.kill(victim.pid, 'SIGKILL')
        },
      }
    },
    async [Symbol.asyncDispose]() {
      await program.stop()
      await database[Symbol.asyncDispose]()
    },
  }
}

/** The flags of Node that the image sets. */
export async function imageFlags(image: 'control-plane' | 'instance'): Promise<string> {
  const dockerfile = await readFile(join(root, `docker/${image}.Dockerfile`), 'utf8')
  return /NODE_OPTIONS="([^"]*)"/.exec(dockerfile)?.[1] ?? ''
}

async function openSession(port: number): Promise<string> {
  const post = (body: unknown, session?: string) =>
    fetch(`http://127.0.0.1:${port}/mcp`, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        accept: 'application/json, text/event-stream',
        ...(session ? { 'mcp-session-id': session } : {}),
      },
      body: JSON.stringify(body),
    })
  const answer = await post({
    jsonrpc: '2.0',
    id: 0,
    method: 'initialize',
    params: { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: { name: 'bench', version: '1' } },
  })
  const session = answer.headers.get('mcp-session-id')
  if (!session) throw new Error(`no session was opened: ${answer.status} ${await answer.text()}`)
  await answer.text()
  await post({ jsonrpc: '2.0', method: 'notifications/initialized' }, session)
  const call = await post(JSON.parse(message), session)
  if (!call.ok) throw new Error(`a call in the session failed: ${call.status} ${await call.text()}`)
  await call.text()
  return session
}

// Both as their manuals advise for event streams: nothing buffered, upstream connections kept, a gone client noticed.
function nginxConf(port: number, upstream: number, folder: string): string {
  return `daemon off; pid ${folder}/nginx.pid; worker_processes 1; worker_rlimit_nofile ${openFilesLimit()};
${process.getuid?.() === 0 ? 'user root;' : ''}
events { worker_connections ${openFilesLimit() - 100}; }
http {
  access_log off; error_log stderr error; keepalive_requests 1000000000; keepalive_timeout 75s; tcp_nodelay on;
  ${['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(kind => `${kind}_temp_path ${folder}/${kind};`).join(' ')}
  upstream instance { server 127.0.0.1:${upstream}; keepalive 128; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:${port} backlog=16384;
    client_max_body_size 4m;
    location / {
      proxy_pass http://instance; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 1h; proxy_send_timeout 1h;
    }
  }
}
`
}

function haproxyConf(port: number, upstream: number): string {
  return `global
  nbthread 1
  maxconn ${Math.floor((openFilesLimit() - 200) / 2)}
defaults
  mode http
  timeout connect 2s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 75s
  option http-no-delay
  option abortonclose
  http-reuse always
frontend clients
  bind 127.0.0.1:${port} backlog 16384
  default_backend instance
backend instance
  server one 127.0.0.1:${upstream}
`
}
