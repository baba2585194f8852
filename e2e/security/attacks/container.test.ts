import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { bearer, docker, initialize, post, runInside, secretsOf } from '../../support/attacker.ts'
import { callTool, connect } from '../../support/mcp-client.ts'
import { eventually, type Stack, startStack } from '../../support/stack.ts'

// Somebody runs code of his own inside alice's instance. What can he reach, and what breaks?

let stack: Stack
let alice: Awaited<ReturnType<Stack['addUser']>>
let bob: Awaited<ReturnType<Stack['addUser']>>
let [hers, his] = ['', '']

beforeAll(async () => {
  stack = await startStack()
  ;[alice, bob] = await Promise.all([stack.addUser('alice'), stack.addUser('bob')])
  ;[hers, his] = [alice.body.user.instance.containerId, bob.body.user.instance.containerId]
})
afterAll(() => stack?.[Symbol.asyncDispose]())

// biome-ignore lint/suspicious/noExplicitAny: read by field
const inspect = async (id: string): Promise<any> => JSON.parse((await docker(['inspect', id])).output)[0]

/** The outcome of each statement, run one after the other inside: its error code, or `done`. */
const outcomes = (statements: Record<string, string>): Promise<Record<string, string>> =>
  runInside(
    hers,
    `
const fs = await import('node:fs'); const net = await import('node:net'); const child = await import('node:child_process')
const results = {}
for (const [name, code] of Object.entries(${JSON.stringify(statements)})) {
  try { await new (Object.getPrototypeOf(async () => {}).constructor)('fs', 'net', 'child', code)(fs, net, child); results[name] = 'done' }
  catch (error) { results[name] = error.code ?? error.message }
}
tell(results)`,
  )

/** Whether a TCP connection from inside comes up: \`open\`, an error code, or \`silence\`. */
const reach = (targets: [host: string, port: number][]): Promise<string[]> =>
  runInside(
    hers,
    `
const { connect } = await import('node:net')
tell(await Promise.all(${JSON.stringify(targets)}.map(([host, port]) => new Promise(done => {
  const socket = connect({ host, port, timeout: 2500 }, () => { done('open'); socket.destroy() })
  socket.on('error', error => done(error.code)).on('timeout', () => { done('silence'); socket.destroy() })
}))))`,
  )

test('attack: writing to the root, the program, the Node.js binary or /etc fails; only /tmp takes files', async () => {
  const write = (path: string) => `fs.writeFileSync(${JSON.stringify(path)}, 'x')`
  const results = await outcomes({
    root: write('/loot'),
    app: write('/app/loot'),
    program: "fs.appendFileSync('/app/main.cjs', 'x')",
    tools: "fs.appendFileSync('/app/later.cjs', 'x')",
    node: "fs.appendFileSync('/usr/local/bin/node', 'x')",
    passwd: write('/etc/passwd'),
    home: write('/root/x'),
    kernel: write('/proc/sys/kernel/core_pattern'),
    sys: write('/sys/kernel/uevent_helper'),
    remove: "fs.unlinkSync('/app/main.cjs')",
    rename: "fs.renameSync('/app', '/app2')",
    snapshot: "fs.appendFileSync('/app/main.blob', 'x')",
    tmp: write('/tmp/ok'),
  })
  const { tmp, ...refused } = results
  expect(tmp).toBe('done')
  for (const [what, code] of Object.entries(refused))
    expect([what, ['EROFS', 'EACCES', 'EPERM', 'ENOENT'].includes(code)]).toEqual([what, true])
  expect(refused.root).toBe('EROFS')
  expect(refused.app).toBe('EROFS')
})

test('attack: a program dropped into /tmp cannot be executed, and /tmp cannot fill the host', async () => {
  const results = await outcomes({
    execute: `
      fs.writeFileSync('/tmp/dropped', '#!/usr/local/bin/node\\nprocess.exit(0)', { mode: 0o755 })
      child.execFileSync('/tmp/dropped')`,
    fill: `
      try { for (let at = 0; at < 64; at++) fs.appendFileSync('/tmp/fill', Buffer.alloc(1024 * 1024)) }
      finally { fs.rmSync('/tmp/fill', { force: true }) }`,
    positive: "child.execFileSync('/usr/local/bin/node', ['--version'])",
  })
  expect(results).toEqual({ execute: 'EACCES', fill: 'ENOSPC', positive: 'done' })
  const mounts = await runInside(hers, "tell((await import('node:fs')).readFileSync('/proc/mounts', 'utf8'))")
  const tmp = mounts.split('\n').find((line: string) => line.includes(' /tmp '))
  for (const option of ['noexec', 'nosuid', 'nodev']) expect(tmp).toContain(option)
})

test('attack: there is no capability to use or to gain, system calls are filtered, and the user is nobody special', async () => {
  const status = await runInside(hers, "tell((await import('node:fs')).readFileSync('/proc/self/status', 'utf8'))")
  const field = (name: string) => new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(status)?.[1]?.trim()
  for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'])
    expect([set, field(set)]).toEqual([set, '0000000000000000'])
  expect([field('NoNewPrivs'), field('Seccomp')]).toEqual(['1', '2'])
  expect([field('Uid'), field('Gid')]).toEqual(['10001\t10001\t10001\t10001', '10001\t10001\t10001\t10001'])
  const results = await outcomes({
    root: 'process.setuid(0)',
    group: 'process.setgid(0)',
    groups: 'process.setgroups([0])',
    owner: "fs.writeFileSync('/tmp/own', ''); fs.chownSync('/tmp/own', 0, 0)",
    lowPort:
      "await new Promise((done, failed) => net.createServer().on('error', failed).listen(80, '10.255.255.1', done))",
    init: 'process.kill(1, 9); throw Object.assign(new Error(), { code: fs.existsSync("/proc/1") ? "alive" : "dead" })',
  })
  expect([results.root, results.group, results.groups, results.owner]).toEqual(['EPERM', 'EPERM', 'EPERM', 'EPERM'])
  expect(results.lowPort).not.toBe('done')
  expect(results.init).toMatch(/alive|EPERM/)
})

test('attack: no set-user-id program and no shell lies around in the image', async () => {
  const found = await runInside(
    hers,
    `
const { readdirSync, lstatSync, existsSync } = await import('node:fs')
const odd = []
const walk = folder => { let entries = []; try { entries = readdirSync(folder) } catch { return }
  for (const name of entries) { const path = folder + '/' + name; if (/^\\/(proc|sys|dev)$/.test(path)) continue
    let stat; try { stat = lstatSync(path) } catch { continue }
    if (stat.isDirectory()) walk(path); else if (stat.isFile() && (stat.mode & 0o6000)) odd.push(path) } }
walk('')
for (const path of ['/bin/sh', '/bin/bash', '/bin/busybox', '/usr/bin/sh', '/usr/bin/curl', '/usr/bin/wget', '/usr/bin/apt', '/usr/local/bin/npm']) if (existsSync(path)) odd.push(path)
tell(odd)`,
  )
  expect(found).toEqual([])
})

test('attack: the Docker socket and the devices and disks of the host are not there', async () => {
  const { HostConfig, Mounts } = await inspect(hers)
  expect([HostConfig.Privileged, HostConfig.Binds ?? [], HostConfig.Devices ?? [], Mounts]).toEqual([false, [], [], []])
  for (const mode of ['PidMode', 'IpcMode', 'UTSMode', 'NetworkMode', 'UsernsMode'])
    expect(HostConfig[mode]).not.toBe('host')
  const results = await runInside(
    hers,
    `
const { existsSync, readdirSync } = await import('node:fs')
tell({ sockets: ['/var/run/docker.sock', '/run/docker.sock', '/run/containerd/containerd.sock', ${JSON.stringify(inject('engine').socket)}].filter(path => existsSync(path)),
       disks: readdirSync('/dev').filter(name => /^(sd|vd|nvme|xvd|loop|dm-|kmsg|mem$)/.test(name)) })`,
  )
  expect(results).toEqual({ sockets: [], disks: [] })
})

test('attack: processes of the host and of other containers cannot be seen or signalled', async () => {
  const commands: string[] = await runInside(
    hers,
    `
const { readdirSync, readFileSync } = await import('node:fs')
tell(readdirSync('/proc').filter(name => /^\\d+$/.test(name)).flatMap(pid => { try { return [readFileSync('/proc/' + pid + '/cmdline', 'utf8')] } catch { return [] } }))`,
  )
  expect(commands.length).toBeGreaterThan(0)
  expect(commands.filter(command => !/node|init|^$/.test(command))).toEqual([])
  expect(commands.join()).not.toMatch(/postgres|dockerd|control-plane/)
})

test("attack: from inside, the database and ServiceDesk Plus are reached; bob's instance and the doors of the host are not", async () => {
  const bobs = Object.values((await inspect(his)).NetworkSettings.Networks) as { IPAddress: string; Gateway: string }[]
  const own = Object.values((await inspect(hers)).NetworkSettings.Networks) as { IPAddress: string; Gateway: string }[]
  expect([bobs.length, own.length]).toEqual([1, 1])
  const { hostAddress } = inject('engine')
  const bobsPort = bob.body.user.instance.port
  const [publicPort, adminPort] = [stack.publicUrl, stack.adminUrl].map(url => Number(new URL(url).port)) as [
    number,
    number,
  ]
  const [database, upstream, self, ...others] = await reach([
    [hostAddress, stack.database.port],
    [hostAddress, stack.simulator.port],
    ['127.0.0.1', alice.body.user.instance.port],
    [bobs[0]!.IPAddress, bobsPort],
    [bobs[0]!.Gateway, bobsPort],
    [own[0]!.Gateway, bobsPort],
    [hostAddress, bobsPort],
    [own[0]!.Gateway, adminPort],
    [hostAddress, adminPort],
    [hostAddress, publicPort],
    [own[0]!.Gateway, 2375],
    [own[0]!.Gateway, 2376],
    ['127.0.0.1', adminPort],
  ])
  expect([database, upstream, self]).toEqual(['open', 'open', 'open'])
  expect(others.filter(result => result === 'open')).toEqual([])
})

/** What a GET hears from inside, until the other side ends it: `refused` when no connection came up. */
const hear = (targets: [host: string, port: number, path: string][]): Promise<string[]> =>
  runInside(hers, hearing(targets))
const hearing = (targets: [host: string, port: number, path: string][]) => `
const { connect } = await import('node:net')
tell(await Promise.all(${JSON.stringify(targets)}.map(([host, port, path]) => new Promise(done => {
  let heard = 'open '
  const socket = connect({ host, port, timeout: 2500 }, () => socket.write('GET ' + path + ' HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n'))
  socket.on('data', data => { heard += data.toString('latin1').slice(0, 12) }).on('close', () => done(heard))
  socket.on('error', error => { if (error.code !== 'ECONNRESET') heard = 'refused' }).on('timeout', () => socket.destroy())
}))))`

test('attack: a control plane that listens on every address of the host hangs up on instances, on both listeners', async () => {
  await stack.controlPlane().stop()
  await stack.startControlPlane({ SDP_HTTP_HOST: '0.0.0.0', SDP_ADMIN_HOST: '0.0.0.0' })
  const { hostAddress } = inject('engine')
  const [{ Gateway }] = Object.values((await inspect(hers)).NetworkSettings.Networks) as [{ Gateway: string }]
  const ports = [stack.publicUrl, stack.adminUrl].map(url => Number(new URL(url).port))
  const doors = ports.flatMap(port =>
    [Gateway, hostAddress].flatMap(host =>
      ['/healthz', '/v1/users', '/metrics', '/mcp'].map(path => [host, port, path] as [string, number, string]),
    ),
  )
  expect(new Set(await hear(doors))).toEqual(new Set(['open ']))
  // another container of the same engine, which is not an instance, finds somebody at home there
  const { Config } = await inspect(hers)
  const { output } = await docker([
    ...['run', '--rm', '--entrypoint', 'node', Config.Image, '--input-type=module', '-e'],
    `const tell = value => process.stdout.write(JSON.stringify(value));\n${hearing(ports.map(port => [hostAddress, port, '/healthz']))}`,
  ])
  expect(JSON.parse(output)).toEqual(['open HTTP/1.1 200', 'open HTTP/1.1 200'])
  expect(stack.controlPlane().output()).toContain('instance-refused')
  await stack.controlPlane().stop()
  await stack.startControlPlane()
})

test('attack: bob is not found by name in the network either', async () => {
  const names = await runInside(
    hers,
    `
const { lookup } = await import('node:dns/promises')
const found = []
for (const name of ${JSON.stringify([his.slice(0, 12), ...(await inspect(his)).Name.slice(1).split('/'), 'bob', 'sdp-mcp-postgres'])})
  await lookup(name).then(() => found.push(name), () => {})
tell(found)`,
  )
  expect(names).toEqual([])
})

test('attack: environment, command lines, boot data and files inside hold no secret', async () => {
  const { dataKey, rolePassword } = await secretsOf(stack, 'alice')
  const state = JSON.stringify(await (await fetch(`${stack.simulator.url}/_sim/state`)).json())
  const zoho = [...state.matchAll(/1000\.[0-9a-f]{32}\.[0-9a-f]{32}/g)].map(match => match[0])
  expect(zoho.length).toBeGreaterThan(0)
  const text: string = await runInside(
    hers,
    `
const { readdirSync, readFileSync, readlinkSync } = await import('node:fs')
let text = ''
for (const pid of readdirSync('/proc').filter(name => /^\\d+$/.test(name)))
  for (const file of ['environ', 'cmdline']) try { text += readFileSync('/proc/' + pid + '/' + file, 'latin1') + '\\n' } catch {}
for (const folder of ['/tmp', '/run', '/var', '/home', '/etc', '/app']) try {
  for (const name of readdirSync(folder, { recursive: true })) try { const path = folder + '/' + name; text += path + '\\n' + (name.endsWith('.mjs') ? '' : readFileSync(path, 'latin1')) } catch {}
} catch {}
tell(text)`,
  )
  expect(text).toContain('SDP_BOOT=stdin')
  for (const secret of [
    dataKey,
    rolePassword,
    alice.key,
    stack.adminToken,
    stack.masterKey,
    stack.database.password,
    ...zoho,
  ])
    expect(text).not.toContain(secret)
})

test('attack: a bomb of threads and processes ends at the limit; the instance and its neighbour go on', async () => {
  const bomb = (threads: number) =>
    docker([
      'exec',
      '--env',
      `UV_THREADPOOL_SIZE=${threads}`,
      hers,
      'node',
      '-e',
      "require('fs').stat('/', () => console.log('threads', require('fs').readdirSync('/proc/self/task').length))",
    ])
  const modest = await bomb(16)
  expect([modest.code, /threads \d\d/.test(modest.output)]).toEqual([0, true])
  // all of the pool are made at once, each is a task for the kernel
  const greedy = await bomb(1_000)
  expect(greedy.code).not.toBe(0)
  const processes = await runInside(
    hers,
    `
const { spawn } = await import('node:child_process')
const children = []; let refused = 0
for (let at = 0; at < 60 && refused < 3; at++) await new Promise(done => {
  const child = spawn(process.execPath, ['--max-old-space-size=16', '-e', 'process.stdin.resume()'], { stdio: ['pipe', 'ignore', 'ignore'], env: { UV_THREADPOOL_SIZE: '4' } })
  child.on('error', () => { refused++; done() }); child.on('spawn', () => { children.push(child); done() })
  child.on('exit', code => { if (code !== null && code !== 0) refused++ })
})
for (const child of children) child.kill('SIGKILL')
tell({ started: children.length, refused })`,
  ).catch(error => ({ started: 0, refused: 1, error }))
  expect(processes.started).toBeLessThan(60)
  expect((await inspect(hers)).HostConfig.PidsLimit).toBe(128)
  for (const user of [alice, bob])
    await eventually(async () => (await post(user.mcp, bearer(user.key), initialize)).status === 200, {
      withinMs: 60_000,
      what: 'the next session',
    })
})

test('attack: taking more memory than allowed ends something in this container only', async () => {
  const before = await inspect(his)
  const { body } = await stack.admin('GET', '/v1/users/alice')
  const { code } = await docker(
    [
      'exec',
      body.instance.containerId,
      'node',
      '-e',
      'const kept = []; for (let at = 0; at < 600; at++) kept.push(Buffer.alloc(1024 * 1024, 1)); console.log(kept.length)',
    ],
    60_000,
  )
  expect(code).not.toBe(0)
  const after = await inspect(his)
  expect([after.State.Running, after.State.StartedAt, after.State.OOMKilled]).toEqual([
    true,
    before.State.StartedAt,
    false,
  ])
  await using asBob = await connect('mcp', bob.mcp, bob.key)
  expect((await callTool(asBob, 'search_requests', { limit: 1 })).requests.length).toBe(1)
  // whichever process the kernel chose: hers works again
  await eventually(
    async () => {
      await using client = await connect('mcp', alice.mcp, alice.key)
      return (await client.listTools()).tools.length > 0
    },
    { withinMs: 90_000, what: "alice's next session" },
  )
})
