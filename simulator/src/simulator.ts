import type { AddressInfo } from 'node:net'
import { createGrantCode, type IssuedGrantCode } from './accounts/accounts.ts'
import { buildApp } from './app.ts'
import { Faults } from './faults/faults.ts'
import { RequestLog } from './request-log.ts'
import { seed } from './seed/seed.ts'
import type { OauthClient, State } from './state.ts'
import { keepStateFile, readStateFile } from './state-file.ts'
import type { World } from './world.ts'

export type { FaultRuleInput } from './faults/faults.ts'
export { Faults } from './faults/faults.ts'
export type { SwitchName, SwitchValues } from './faults/switches.ts'
export type { LogEntry, RequestLog } from './request-log.ts'
export type { OauthClient, Portal, State, StoredRecord } from './state.ts'
export type { IssuedGrantCode }

export interface SimulatorOptions {
  /** Address to listen on; default 127.0.0.1. */
  host?: string
  /** Port; default 0, any free one. */
  port?: number
  /** Fill in people, portals and tickets; default true. Without it the state is people and lookups only. */
  seed?: boolean
  /** Clock in epoch milliseconds; default the real one. */
  now?: () => number
  /** Host name that clients use when it is not `host`, for example inside a container network. */
  publicHost?: string
  /** Where to keep the state between runs; nothing is kept without it. */
  stateFile?: string
  /** Redirect URIs of the organisation-wide server client; the control API can change them. */
  redirectUris?: string[]
}

export interface Simulator extends AsyncDisposable {
  /** The origin clients use, without a slash at the end. It is accounts host and API host in one. */
  url: string
  port: number
  /** The living state; replaced by a reset, so read it anew. */
  readonly state: State
  faults: Faults
  /** One entry per exchange; the control API is not logged. */
  log: RequestLog
  /** OAuth clients: one self client per person and the organisation's server client. */
  readonly clients: OauthClient[]
  /** Makes a one-time grant code as the developer console does. Throws after ten per client in ten minutes. */
  createGrantCode(wanted: {
    user: string
    scopes?: string[]
    clientId?: string
    expiresInSeconds?: number
  }): IssuedGrantCode
  /** Back to the seeded state. */
  reset(): void
  /** Stops listening, cuts open connections, writes the state file. */
  close(): Promise<void>
}

/**
 * Starts a stand-in for Zoho Accounts and the SDP Cloud API v3 on one port.
 * It is for tests and evaluation and holds nothing worth protecting: `/_sim/` gives credentials to whoever asks.
 */
export async function startSimulator(options: SimulatorOptions = {}): Promise<Simulator> {
  const { host = '127.0.0.1', port = 0, now = Date.now, stateFile } = options
  const seeded = () => seed({ now: now(), tickets: options.seed ?? true, redirectUris: options.redirectUris })
  const kept = stateFile ? await readStateFile(stateFile) : undefined
  const keeper = stateFile ? keepStateFile(stateFile, () => world.state) : undefined

  let origin = ''
  const world: World = {
    state: kept ?? seeded(),
    faults: new Faults(),
    log: new RequestLog(),
    now,
    changed: () => keeper?.changed(),
    origin: () => origin,
  }
  function reset() {
    world.state = seeded()
    world.faults.clear()
    world.log.clear()
    world.changed()
  }

  const app = buildApp(world, { reset })
  await app.listen({ host, port })
  const address = app.server.address() as AddressInfo
  const shownHost = options.publicHost ?? (host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host)
  origin = `http://${shownHost.includes(':') ? `[${shownHost}]` : shownHost}:${address.port}`
  if (!kept) world.changed()

  async function close() {
    await app.close()
    await keeper?.flush()
  }
  return {
    url: origin,
    port: address.port,
    get state() {
      return world.state
    },
    faults: world.faults,
    log: world.log,
    get clients() {
      return world.state.clients
    },
    createGrantCode: wanted => createGrantCode(world, wanted),
    reset,
    close,
    [Symbol.asyncDispose]: close,
  }
}
