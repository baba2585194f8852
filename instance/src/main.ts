// first: it guards what follows while a snapshot is made
import './start.ts'

import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { Logger } from 'pino'
import manifest from '../package.json' with { type: 'json' }
import {
  ConfigError,
  forgetSecrets,
  keyBeside,
  parseBoot,
  readStandAlone,
  type StandAlone,
  waitsForBoot,
} from './config.ts'
import type { InstanceContext } from './context.ts'
import { type Boot, dataCenterHosts, exitCodes, statementAudience } from './contract.ts'
import { createLog } from './log.ts'
import { createOutgoing } from './outgoing.ts'
import { rehearse } from './rehearsal.ts'
import { checkPortal } from './sdp/check-portal.ts'
import { SealError } from './seal.ts'
import { buildServer, servicesOf } from './server.ts'
import { start } from './start.ts'
import { createKeeper, type Keeper, mintLimit } from './tokens/keeper.ts'
import { enrollLoneUser, postgresStore } from './tokens/postgres-store.ts'
import type { TokenStore } from './tokens/store.ts'
import { createZohoAccounts } from './tokens/zoho-accounts.ts'
import { createToolAudit, type ToolAudit } from './tool-audit.ts'
import { type Gate, type HttpServer, serveHttp } from './transports/http.ts'
import { localGate } from './transports/local-gate.ts'
import { statementGate } from './transports/statement.ts'
import { serveStdio } from './transports/stdio.ts'
import { meterUpstream, type UpstreamMeter } from './upstream-meter.ts'
import { createUsage } from './usage.ts'

/**
 * One user's MCP server. Started by the control plane (`SDP_BOOT=stdin`: one line of JSON on standard input says
 * everything), or by one person alone, from the environment.
 */

const { version } = manifest
const bootTimeoutMs = 30_000
const graceMs = 8_000
const killedAfterMs = 9_500
const portalCheckMs = 10_000

const help = `sdp-mcp instance ${version}: ServiceDesk Plus Cloud for MCP clients, for one person.

  --stdio    serve the client that started it (default when standard input is not a terminal)
  --http     serve http://127.0.0.1:3456/mcp and /sse (default in a terminal)
  --version  --help

Set SDP_INSTANCE_NAME, SDP_DATA_CENTER, SDP_CLIENT_ID, SDP_CLIENT_SECRET and, the first time, SDP_GRANT_CODE.
`

type Setup = {
  user: InstanceContext['user']
  settings: Pick<InstanceContext, 'sdp' | 'toolsets' | 'readOnly' | 'consentLinks'>
  store: TokenStore
  log: Logger
  howToAuthorize: string
  /** names that may lead to private addresses; `any`: nothing is checked (evaluation and tests) */
  upstreams: readonly string[] | 'any'
  egress?: Boot['egress']
}

async function main(): Promise<void> {
  const args = process.argv.slice(2)
  if (waitsForBoot(process.env)) return runManaged()
  if (args.includes('--version')) return void process.stdout.write(`${version}\n`)
  if (args.includes('--help')) return void process.stdout.write(help)
  return runAlone(args)
}

async function runManaged(): Promise<void> {
  const line = await firstLine(process.stdin, bootTimeoutMs)
  if (line === undefined)
    return quit(exitCodes.bootMissing, [
      'No boot line came on standard input. The control plane writes it when it starts an instance.',
    ])
  let boot: ReturnType<typeof parseBoot>
  try {
    boot = parseBoot(line)
  } catch (error) {
    if (error instanceof ConfigError) return quit(exitCodes.bootInvalid, error.problems)
    throw error
  }
  const { user, sdp, toolsets, readOnly, consentLinks, key, generation, maxSessions } = boot
  const log = createLog({ level: boot.logLevel, username: user.username })
  const { context, keeper, audit, meter } = assemble({
    user,
    settings: { sdp, toolsets, readOnly, consentLinks },
    store: postgresStore({
      database: boot.database,
      userId: user.id,
      key,
      onError: error => log.warn({ err: error }, 'tokens.database.connection-lost'),
    }),
    log,
    howToAuthorize: `${
      consentLinks
        ? `Ask your administrator for a connect link (POST /v1/users/${user.username}/connect-link) and open it in a browser. Or make`
        : 'Make'
    } a grant code at ${dataCenterHosts[sdp.dataCenter].console} (Self Client, Generate Code) and give it at once to your administrator, who sends it to POST /v1/users/${user.username}/authorization.`,
    upstreams: boot.allowInsecureUpstream ? 'any' : boot.allowedUpstreamHosts,
    egress: boot.egress,
  })
  const audience = statementAudience(user.id, generation)
  const gate = statementGate({ keys: boot.statementKeys, audience, username: user.username })
  await listen({ context, keeper, audit, meter }, { ...boot.listen, gate, audience, maxSessions })
}

async function runAlone(args: string[]): Promise<void> {
  let config: StandAlone
  try {
    config = await readStandAlone(process.env, args, process.stdin.isTTY === true)
  } catch (error) {
    if (error instanceof ConfigError) return quit(exitCodes.bootInvalid, error.problems)
    throw error
  }
  forgetSecrets(process.env)
  const { username, sdp, toolsets, readOnly, listen: address } = config
  const log = createLog({ level: config.logLevel, username })
  const { store, userId } = await openStore(config, log)
  const { context, keeper, audit, meter } = assemble({
    user: { id: userId, username, displayName: username, email: null },
    settings: { sdp, toolsets, readOnly },
    store,
    log,
    howToAuthorize: `Make a grant code at ${dataCenterHosts[sdp.dataCenter].console} (Self Client, Generate Code), set SDP_GRANT_CODE to it and start again before its time is over.`,
    upstreams: config.upstreams,
  })
  if (config.transport === 'http') {
    const gate = localGate(address)
    const { port } = await listen({ context, keeper, audit, meter }, { ...address, gate, audience: 'stand-alone' })
    const url = `http://${address.host.includes(':') ? `[${address.host}]` : address.host}:${port}`
    const header = address.apiKey === undefined ? '' : ' --header "Authorization: Bearer <SDP_API_KEY>"'
    process.stderr.write(
      `\nServing ${username} at ${url}/mcp (and ${url}/sse). Add it to Claude Code:\n\n  claude mcp add --transport http servicedesk ${url}/mcp${header}\n\n`,
    )
    return
  }
  keeper.start()
  const end = async () => {
    await audit?.close()
    await keeper.close()
  }
  onStop(end, log)
  await serveStdio(buildServer(context, audit ? { onToolCall: audit.record } : {}))
  await end()
  process.exit(0)
}

async function openStore(config: StandAlone, log: Logger): Promise<{ store: TokenStore; userId: string }> {
  const { store, credentials, username } = config
  if (store.kind === 'file') {
    const { fileStore } = await import('./tokens/file-store.ts')
    const key = store.key ?? (await keyBeside(store.folder))
    const file = fileStore({ path: join(store.folder, `${username}.json`), userId: username, key })
    await file.takeOver(credentials)
    return { store: file, userId: username }
  }
  const { database, masterKey } = store
  // only needed here; images of the control plane's instances leave it out
  const { migrate } = await import('@sdp-mcp/migrations')
  await migrate(database, { log: message => log.info(message) })
  const { sdp, toolsets, readOnly } = config
  const enrolled = await enrollLoneUser({
    database,
    masterKey,
    user: { username, sdp, toolsets, readOnly },
    given: credentials,
  })
  return {
    store: postgresStore({
      database,
      ...enrolled,
      onError: error => log.warn({ err: error }, 'tokens.database.connection-lost'),
    }),
    userId: enrolled.userId,
  }
}

type Assembled = { context: InstanceContext; keeper: Keeper; audit: ToolAudit | undefined; meter: UpstreamMeter }

function assemble({ user, settings, store, log, howToAuthorize, upstreams, egress }: Setup): Assembled {
  const behindProxy = ['https_proxy', 'HTTPS_PROXY', 'http_proxy', 'HTTP_PROXY'].some(name => process.env[name])
  const { sdp } = settings
  const meter = meterUpstream(
    createOutgoing({ upstreams, behindProxy, ...(egress ? { egress } : {}) }),
    sdp.accountsUrl,
  )
  const accounts = createZohoAccounts({
    accountsUrl: sdp.accountsUrl,
    consoleUrl: dataCenterHosts[sdp.dataCenter].console,
    http: meter.http,
  })
  const keeper = createKeeper({ store, accounts, log, howToAuthorize, expectedEmail: user.email })
  const context = { user, ...settings, tokens: keeper, http: meter.http, log, now: Date.now, version }
  const write = store.recordToolCalls?.bind(store)
  return { context, keeper, audit: write && createToolAudit({ write, log }), meter }
}

async function listen(
  { context, keeper, audit, meter }: Assembled,
  {
    host,
    port,
    gate,
    audience,
    maxSessions,
  }: { host: string; port: number; gate: Gate; audience: string; maxSessions?: number },
): Promise<HttpServer> {
  const { log } = context
  const usage = createUsage()
  let server: HttpServer
  try {
    server = await serveHttp({
      host,
      port,
      gate,
      ...(maxSessions === undefined ? {} : { maxSessions }),
      identity: { audience, version },
      buildServer: wish =>
        buildServer(context, {
          ...wish,
          onToolCall: call => {
            usage.record(call)
            audit?.record(call)
          },
        }),
      control: {
        async usage() {
          const { upstream, mints, failures } = meter.report()
          const { mintsInWindow, accountsServer } = await keeper.status()
          const mintsLeft = Math.max(0, mintLimit - mintsInWindow)
          return {
            ...usage.report(),
            uptimeSeconds: Math.round(process.uptime()),
            upstream,
            tokens: { mints, failures, mintsLeft, accountsServer },
          }
        },
        exchange: async () =>
          checkPortal(
            await keeper.exchange(),
            context.sdp,
            servicesOf(context).client.bind({ signal: AbortSignal.timeout(portalCheckMs) }),
          ),
        revoke: () => keeper.revoke(),
      },
      log,
    })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EADDRINUSE') {
      await keeper.close()
      return quit(exitCodes.portInUse, [
        `Port ${port} of ${host} is in use. Stop the program that holds it, or choose another port.`,
      ])
    }
    throw error
  }
  onStop(async () => {
    const startedAt = performance.now()
    await server.stop(graceMs)
    await audit?.close(1_000)
    // whoever stopped us kills us after ten seconds; an exchange under way gets what is left of them
    await Promise.race([keeper.close(), delay(Math.max(500, killedAfterMs - (performance.now() - startedAt)))])
  }, log)
  keeper.start()
  log.info({ host, port: server.port, version, bootMs: Math.round(performance.now()) }, 'instance.ready')
  return server
}

function onStop(stop: () => Promise<void>, log: Logger): void {
  let stopping = false
  for (const signal of ['SIGTERM', 'SIGINT'] as const)
    process.on(signal, () => {
      if (stopping) process.exit(1) // asked twice: at once
      stopping = true
      log.info({ signal }, 'instance.stopping')
      stop().then(
        () => process.exit(0),
        error => {
          log.error({ err: error }, 'instance.stop.failed')
          process.exit(exitCodes.internal)
        },
      )
    })
}

/** @returns undefined when the stream ends, or nothing comes in time */
function firstLine(stream: NodeJS.ReadStream, timeoutMs: number): Promise<string | undefined> {
  return new Promise(done => {
    let text = ''
    const finish = (line: string | undefined) => {
      clearTimeout(timer)
      stream.removeAllListeners()
      stream.on('error', () => {})
      stream.destroy()
      done(line)
    }
    const timer = setTimeout(finish, timeoutMs, undefined)
    stream.setEncoding('utf8')
    stream.on('data', (chunk: string) => {
      text += chunk
      const end = text.indexOf('\n')
      if (end >= 0) finish(text.slice(0, end))
      else if (text.length > 1024 * 1024) finish(text)
    })
    stream.on('end', () => finish(text.trim() ? text : undefined))
    stream.on('error', () => finish(undefined))
  })
}

function quit(code: number, problems: readonly string[]): never {
  process.stderr.write(`${problems.map(problem => `sdp-mcp: ${problem}`).join('\n')}\n`)
  process.exit(code)
}

function crash(error: unknown): never {
  if (error instanceof ConfigError) return quit(exitCodes.bootInvalid, error.problems)
  if (error instanceof SealError)
    return quit(exitCodes.bootInvalid, [
      `The stored secrets cannot be opened: ${error.message}. Start with the SDP_MASTER_KEY they were sealed with.`,
    ])
  const { message, stack } = error instanceof Error ? error : new Error(String(error))
  return quit(exitCodes.internal, [`stopped by an error: ${message}`, stack ?? ''])
}

start(() => {
  process.on('uncaughtException', crash)
  process.on('unhandledRejection', crash)
  main().catch(crash)
}, rehearse)
