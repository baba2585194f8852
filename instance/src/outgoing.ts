import type { Dispatcher, fetch as undiciFetch } from 'undici'
import type { Boot } from './contract.ts'

export type OutgoingOptions = {
  /** names that may lead to private addresses; `any`: nothing is checked (evaluation and tests) */
  upstreams: readonly string[] | 'any'
  /** calls go through the HTTP proxy that the environment names */
  behindProxy: boolean
  /** calls go through the control plane's egress proxy, which alone leads out */
  egress?: NonNullable<Boot['egress']>
}

type Client = {
  fetch: typeof undiciFetch
  dispatcher: Dispatcher
  checkLiteralHost: typeof import('./upstream-guard.ts').checkLiteralHost
}

const connectTimeoutMs = 10_000

/**
 * undici's fetch over connections that are kept for the next call. The library is a quarter of an instance's code and is
 * needed for the first call only, so it is loaded then: most instances wait for somebody most of their time.
 */
export function createOutgoing({ upstreams, behindProxy, egress }: OutgoingOptions): typeof undiciFetch {
  let loading: Promise<Client> | undefined
  let loaded: Client | undefined

  async function load(): Promise<Client> {
    const [{ Agent, EnvHttpProxyAgent, ProxyAgent, fetch }, { checkLiteralHost, guardedConnector }] = await Promise.all(
      [import('undici'), import('./upstream-guard.ts')],
    )
    const pool = {
      connections: 16,
      keepAliveTimeout: 30_000,
      ...(upstreams === 'any'
        ? { connectTimeout: connectTimeoutMs }
        : { connect: guardedConnector({ allowedHosts: upstreams, connectTimeoutMs }) }),
    }
    const dispatcher: Dispatcher = egress
      ? new ProxyAgent({
          uri: egress.proxy,
          token: `Bearer ${egress.token}`,
          // the proxy makes tunnels and nothing else, for the simulator's http, too
          proxyTunnel: true,
          connections: pool.connections,
          keepAliveTimeout: pool.keepAliveTimeout,
          connectTimeout: connectTimeoutMs,
        })
      : behindProxy
        ? new EnvHttpProxyAgent(pool)
        : new Agent(pool)
    loaded = { fetch, dispatcher, checkLiteralHost }
    return loaded
  }

  return async (input, init) => {
    loading ??= load()
    const { fetch, dispatcher, checkLiteralHost } = loaded ?? (await loading)
    // behind a proxy the connector never sees the address that is meant
    if ((egress || behindProxy) && upstreams !== 'any')
      checkLiteralHost(new URL(typeof input === 'object' && 'url' in input ? input.url : input), upstreams)
    return fetch(input, { dispatcher, ...init })
  }
}
