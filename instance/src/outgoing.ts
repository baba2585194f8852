import type { Dispatcher } from 'undici'
import type { Boot } from './contract.ts'
import type { HttpClient } from './http-client.ts'

export type OutgoingOptions = {
  /** names that may lead to private addresses; `any`: nothing is checked (evaluation and tests) */
  upstreams: readonly string[] | 'any'
  /** calls go through the HTTP proxy that the environment names */
  behindProxy: boolean
  /** calls go through the control plane's egress proxy, which alone leads out */
  egress?: NonNullable<Boot['egress']>
}

type Loaded = {
  dispatcher: Dispatcher
  exchange: typeof import('./http-exchange.ts').exchange
  checkLiteralHost: typeof import('./upstream-guard.ts').checkLiteralHost
}

const connectTimeoutMs = 10_000

/**
 * HTTP over connections that are kept for the next call. undici is a quarter of an instance's code and is needed for the
 * first call only, so it is loaded then: most instances wait for somebody most of their time.
 */
export function createOutgoing({ upstreams, behindProxy, egress }: OutgoingOptions): HttpClient {
  let loading: Promise<Loaded> | undefined
  let loaded: Loaded | undefined

  async function load(): Promise<Loaded> {
    const [{ Agent, EnvHttpProxyAgent, ProxyAgent }, { checkLiteralHost, guardedConnector }, { exchange }] =
      await Promise.all([import('undici'), import('./upstream-guard.ts'), import('./http-exchange.ts')])
    const pool = {
      connections: 16,
      // over HTTP/2 undici repeats calls by itself where the server says that it did not see them; whether a write may be sent
      // twice is decided in sdp/client.ts
      allowH2: false,
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
          allowH2: pool.allowH2,
          keepAliveTimeout: pool.keepAliveTimeout,
          connectTimeout: connectTimeoutMs,
        })
      : behindProxy
        ? new EnvHttpProxyAgent(pool)
        : new Agent(pool)
    loaded = { dispatcher, exchange, checkLiteralHost }
    return loaded
  }

  return async call => {
    // what failed, for want of memory or descriptors, is tried again by the next call
    loading ??= load().catch(error => {
      loading = undefined
      throw error
    })
    const { dispatcher, exchange, checkLiteralHost } = loaded ?? (await loading)
    // behind a proxy the connector never sees the address that is meant
    if ((egress || behindProxy) && upstreams !== 'any') checkLiteralHost(new URL(call.url), upstreams)
    return exchange(dispatcher, call)
  }
}
