import { request as httpRequest } from 'node:http'

/** The few questions the evaluation asks a Docker engine, over its socket. */
export type Engine = {
  socket: string
  version: string
  /** address of this host as containers on a bridge reach it */
  hostAddress: string
}

/** The engine at DOCKER_HOST or the usual socket; undefined when none answers. */
export async function findEngine(dockerHost = process.env.DOCKER_HOST): Promise<Engine | undefined> {
  if (dockerHost && !dockerHost.startsWith('unix://')) return undefined
  const socket = dockerHost ? dockerHost.slice('unix://'.length) : '/var/run/docker.sock'
  try {
    const { Version } = (await ask(socket, 'GET', '/version')) as { Version: string }
    const network = (await ask(socket, 'GET', '/networks/bridge')) as {
      IPAM: { Config: { Gateway?: string; Subnet: string }[] }
    }
    const [bridge] = network.IPAM.Config
    return { socket, version: Version, hostAddress: bridge?.Gateway ?? bridge!.Subnet.replace(/\.\d+\/\d+$/, '.1') }
  } catch {
    return undefined
  }
}

export async function hasImage(engine: Engine, image: string): Promise<boolean> {
  return ask(engine.socket, 'GET', `/images/${image}/json`).then(
    () => true,
    () => false,
  )
}

/** Removes every container and network of an installation. */
export async function removeInstallation(engine: Engine, installation: string): Promise<number> {
  const filters = encodeURIComponent(JSON.stringify({ label: [`com.sdp-mcp.installation=${installation}`] }))
  const containers = (await ask(engine.socket, 'GET', `/containers/json?all=true&filters=${filters}`)) as {
    Id: string
  }[]
  await Promise.all(
    containers.map(({ Id }) => ask(engine.socket, 'DELETE', `/containers/${Id}?force=true&v=true`).catch(() => {})),
  )
  const networks = (await ask(engine.socket, 'GET', `/networks?filters=${filters}`)) as { Id: string }[]
  await Promise.all(networks.map(({ Id }) => ask(engine.socket, 'DELETE', `/networks/${Id}`).catch(() => {})))
  return containers.length
}

function ask(socketPath: string, method: string, path: string): Promise<unknown> {
  return new Promise((done, failed) => {
    const request = httpRequest({ socketPath, method, path, timeout: 20_000 }, response => {
      let text = ''
      response.setEncoding('utf8').on('data', chunk => {
        text += chunk
      })
      response.on('end', () => {
        if ((response.statusCode ?? 500) >= 300)
          failed(new Error(`the engine answered ${response.statusCode} to ${method} ${path}: ${text.trim()}`))
        else done(text ? JSON.parse(text) : undefined)
      })
    })
    request.on('timeout', () => request.destroy(new Error('the engine did not answer in time')))
    request.on('error', failed)
    request.end()
  })
}
