import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { inject } from 'vitest'
import { eventually } from '../support/stack.ts'

const run = promisify(execFile)

/**
 * A Docker engine to be stopped and started, with the image under test in it. It has a network namespace of its own: two
 * engines in one would take away each other's bridge and packet filter rules. Needs root, like the engine of the test run.
 */
export async function startOwnEngine(image: string) {
  const home = await mkdtemp('/tmp/sdp-mcp-chaos-')
  const name = `chaos-${process.pid}`
  const [hostAddress, address] = ['10.217.0.1', '10.217.0.2']
  const socket = join(home, 'docker.sock')
  const host = `unix://${socket}`
  const environment = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` }
  const sh = (script: string) => run('sh', ['-ec', script], { env: environment })
  let daemon: ChildProcess | undefined

  await sh(`ip netns add ${name}
    ip link add ${name} type veth peer name eth0 netns ${name}
    ip addr add ${hostAddress}/30 dev ${name}; ip link set ${name} up
    ip -n ${name} addr add ${address}/30 dev eth0; ip -n ${name} link set eth0 up; ip -n ${name} link set lo up
    ip -n ${name} route add default via ${hostAddress}`)

  const engine = {
    host,
    socket,
    /** of this machine, as instances reach it */
    hostAddress,
    /** of the namespace, as this machine reaches it */
    address,
    /** makes a program run in the namespace */
    enter: ['nsenter', `--net=/var/run/netns/${name}`],
    async start() {
      const args = [
        '--host',
        host,
        '--data-root',
        `${home}/data`,
        '--exec-root',
        `${home}/exec`,
        '--pidfile',
        `${home}/pid`,
      ]
      const [program, ...own] = [...engine.enter, 'dockerd', ...args] as [string, ...string[]]
      daemon = spawn(program, own, { stdio: 'ignore', env: environment })
      await eventually(
        () => run('docker', ['version'], { env: { ...environment, DOCKER_HOST: host }, timeout: 5_000 }),
        {
          what: 'the engine of this test',
          withinMs: 60_000,
        },
      )
    },
    async stop() {
      if (!daemon || daemon.exitCode !== null || daemon.signalCode !== null) return
      const gone = new Promise(done => daemon?.once('exit', done))
      daemon.kill('SIGTERM')
      await gone
    },
    async [Symbol.asyncDispose]() {
      await engine.stop()
      await sh(`ip netns delete ${name}; ip link delete ${name} 2>/dev/null || true`)
      await rm(home, { recursive: true, force: true })
    },
  }
  await engine.start()
  await run('sh', ['-ec', 'docker --host "$FROM" save "$IMAGE" | docker --host "$TO" load'], {
    env: { ...environment, FROM: inject('engine').host, TO: host, IMAGE: image },
  })
  return engine
}
