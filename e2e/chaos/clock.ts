import { execFile } from 'node:child_process'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { promisify } from 'node:util'

const run = promisify(execFile)

/**
 * A clock that can be put forward and back, for processes of ours, without touching that of the machine: each asks it ten
 * times a second how far it is off, and moves what `Date` says. Timers run on, as they do when a real clock jumps.
 *
 * @param host - where both the control plane and containers reach it
 */
export async function startClock(host: string) {
  let offMs = 0
  const server = createServer((_request, response) => response.end(String(offMs)))
  await new Promise<void>(done => server.listen(0, host, done))
  const url = `http://${host}:${(server.address() as AddressInfo).port}`
  const preload = `
    const real = Date
    let off = 0
    globalThis.Date = class Date extends real {
      constructor(...given) { given.length ? super(...given) : super(real.now() + off) }
      static now() { return real.now() + off }
    }
    const { get } = process.getBuiltinModule('node:http')
    setInterval(() => get('${url}', answer => {
      let text = ''
      answer.setEncoding('utf8').on('data', part => { text += part }).on('end', () => { off = Number(text) })
    }).on('error', () => {}), 100).unref()`
  /** for the environment of a process */
  const nodeOptions = `--import=data:text/javascript,${encodeURIComponent(preload).replaceAll("'", '%27')}`
  return {
    nodeOptions,
    /** @param ms - from now on every process is this far off the real time */
    set(ms: number): void {
      offMs = ms
    },
    /** Makes an image whose processes go by this clock. */
    async addTo(image: string, name: string, engine: string): Promise<void> {
      const docker = (...args: string[]) => run('docker', args, { env: { ...process.env, DOCKER_HOST: engine } })
      const container = (await docker('create', image)).stdout.trim()
      // not from the snapshot, in which the program would have been there before what NODE_OPTIONS imports
      const changes = [`ENV NODE_OPTIONS=${nodeOptions}`, 'ENTRYPOINT ["node", "/app/main.cjs"]']
      await docker('commit', ...changes.flatMap(change => ['-c', change]), container, name)
      await docker('rm', container)
    },
    async [Symbol.asyncDispose](): Promise<void> {
      server.closeAllConnections()
      await new Promise(done => server.close(done))
    },
  }
}
