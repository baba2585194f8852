import {
  BrokenCircuitError,
  CircuitState,
  ConsecutiveBreaker,
  circuitBreaker,
  DelegateBackoff,
  handleWhen,
} from 'cockatiel'
import type { Logger } from 'pino'
import { AuthorizationError, type ConnectionStatus, type TokenKeeper } from '../context.ts'
import type { ConnectionReport } from '../contract.ts'
import { SealError } from '../seal.ts'
import { type Change, type Held, mintWindowMs, type StoredConnection, type TokenStore } from './store.ts'
import { AccountsError, type TokenGrant, type ZohoAccounts } from './zoho-accounts.ts'

export type KeeperOptions = {
  store: TokenStore
  accounts: ZohoAccounts
  log: Logger
  /** milliseconds since 1970 */
  now?: () => number
  /** 0 to under 1; spreads refreshes */
  random?: () => number
  /** what a person does to authorize (again), as a sentence */
  howToAuthorize: string
  /** whose Zoho account a consent must be of; null: anybody's */
  expectedEmail?: string | null
  /** how long a failing accounts server is left alone at first; doubles up to two minutes */
  breakerMs?: number
}

export type Keeper = Omit<TokenKeeper, 'status'> & {
  /** Exchanges a waiting grant code, or tries a refresh token nobody has tried yet, in the background until it is settled. */
  start(): void
  /** The same, once and awaited. Repeatable: without anything waiting it only reports. */
  exchange(): Promise<ConnectionReport>
  /** Revokes at Zoho and erases the tokens. Repeatable; when Zoho cannot be reached nothing is erased. */
  revoke(): Promise<ConnectionReport>
  status(): Promise<ConnectionStatus & { accountsServer: 'fine' | 'failing' }>
  close(): Promise<void>
}

/** Zoho allows 10 in 10 minutes (docs/sdp-api.md 2.7). What nobody waits for leaves two for what somebody does. */
export const mintLimit = 10
const reservedMints = 2
/** A token this close to its end is not handed out while a better one can be had. */
const marginMs = 60_000
/** A refresh nobody waits for that failed is tried again after this long. */
const aheadPauseMs = 15_000
/** A second 401 within this time is not the token's fault: a missing scope also answers 401 (docs/sdp-api.md 2.9). */
const forcedPauseMs = 120_000

type Cached = { token: string; expiresAt: number; marginMs: number; refreshAt: number }
/** `ahead`: nobody waits for it yet */
type Purpose = 'needed' | 'ahead'
type Minted = { token: string; lifeMs: number; ageMs?: number }
/** What Zoho answered for which credential, until it is committed. */
type Unsaved = { change: Change; minted: Minted; at: number; usedCode?: string; usedRefreshToken?: string }

/**
 * Keeps one user's connection to Zoho.
 *
 * States, kept in the store: `needs-authorization` -> `connected` when a grant code is exchanged or a given refresh
 * token proves good; any -> `needs-reauthorization` when Zoho refuses the refresh token or the client. A
 * permanent refusal is acted on at once and ends all calls until somebody authorizes again. What is transient
 * (network, 5xx, throttling) changes no state and deletes nothing.
 *
 * One refresh runs at a time: in this process by a shared promise, among processes by the store's lock, after which
 * the store is read again. So whoever comes second finds the first one's token.
 */
export function createKeeper(options: KeeperOptions): Keeper {
  const { store, accounts, log, howToAuthorize, now = Date.now, random = Math.random, breakerMs = 5_000 } = options
  const expectedEmail = options.expectedEmail?.toLowerCase()

  let cached: Cached | undefined
  let flight: Promise<string> | undefined
  /** the token the API refused, until another one is there */
  let refused: string | undefined
  let forcedAt = Number.NEGATIVE_INFINITY
  /** what Zoho gave and the store could not take yet; losing it would lose a grant */
  let unsaved: Unsaved | undefined
  /** the connection when the store last told it, and when that was */
  let known: StoredConnection | undefined
  let knownAt = 0
  let closed = false
  let turn: Promise<unknown> = Promise.resolve()
  let startTimer: NodeJS.Timeout | undefined

  let retryAt = 0
  const breaker = circuitBreaker(
    handleWhen(error => error instanceof AccountsError && !error.permanent),
    {
      breaker: new ConsecutiveBreaker(3),
      halfOpenAfter: new DelegateBackoff(({ attempt }) => {
        const pause = Math.min(breakerMs * 2 ** (attempt - 1), 120_000) * (0.8 + 0.4 * random())
        retryAt = Date.now() + pause
        return pause
      }),
    },
  )
  breaker.onStateChange(state => log.info({ state: CircuitState[state] }, 'tokens.accounts-server.breaker'))
  /** until when Zoho asked us to be quiet */
  let throttledUntil = 0

  function know(connection: StoredConnection | undefined): StoredConnection | undefined {
    knownAt = now()
    known = connection
    return connection
  }

  function remember({ token, lifeMs, ageMs = 0 }: Minted): string {
    const total = lifeMs + ageMs
    const expiresAt = now() + lifeMs
    // spread over the fifth to the first minute before the end, so that a fleet does not refresh at once
    const aheadMs = Math.min(marginMs + random() * 240_000, total / 3)
    cached = { token, expiresAt, marginMs: Math.min(marginMs, total / 10), refreshAt: expiresAt - aheadMs }
    return token
  }

  /** The store's token, when it is good enough for the purpose. */
  function usable(connection: StoredConnection | undefined, purpose: Purpose): Minted | undefined {
    const stored = connection?.accessToken
    if (!stored || connection.state !== 'connected' || connection.hasGrantCode) return undefined
    const { lifeMs, ageMs } = stored
    const total = lifeMs + ageMs
    const needed = purpose === 'ahead' ? Math.min(marginMs + 240_000, total / 3) : Math.min(marginMs, total / 10)
    return lifeMs <= needed ? undefined : readToken(stored)
  }

  function readToken(stored: NonNullable<StoredConnection['accessToken']>) {
    try {
      const token = stored.token()
      return token === refused ? undefined : { token, lifeMs: stored.lifeMs, ageMs: stored.ageMs }
    } catch (error) {
      // a cached token is replaceable; if the key is wrong, the refresh token will say so
      log.warn({ err: error }, 'tokens.access-token.unreadable')
      return undefined
    }
  }

  function demand(connection: StoredConnection | undefined): StoredConnection {
    if (!connection)
      throw new AuthorizationError('needs-authorization', 'There is no Zoho client for this user yet.', howToAuthorize)
    if (connection.hasGrantCode) return connection
    if (connection.state === 'needs-reauthorization')
      throw new AuthorizationError(
        'needs-reauthorization',
        connection.reason ?? 'The authorization at Zoho has ended.',
        howToAuthorize,
      )
    if (!connection.hasRefreshToken)
      throw new AuthorizationError(
        'needs-authorization',
        connection.reason ?? 'ServiceDesk Plus was not authorized yet.',
        howToAuthorize,
      )
    return connection
  }

  async function guarded<T>(held: Held, purpose: Purpose, call: () => Promise<T>): Promise<T> {
    const ages = await store.mintAgesMs()
    const limit = purpose === 'needed' ? mintLimit : mintLimit - reservedMints
    const oldestThatCounts = ages[limit - 1]
    if (oldestThatCounts !== undefined) {
      const seconds = Math.max(1, Math.ceil((mintWindowMs - oldestThatCounts) / 1000))
      throw new AuthorizationError(
        'unavailable',
        `Zoho allows ${mintLimit} token calls in ten minutes, and ${ages.length} were made.`,
        `Wait ${seconds} s; the next call goes on by itself.`,
        { retryAfterSeconds: seconds },
      )
    }
    try {
      return await breaker.execute(async () => {
        await held.recordMint()
        return call()
      })
    } catch (error) {
      if (error instanceof AccountsError && error.kind === 'throttled')
        throttledUntil = now() + (error.retryAfterSeconds ?? 60) * 1000
      throw error
    }
  }

  /** Fails fast, before the lock is asked for, while the accounts server is left alone. */
  function checkAccountsServer(): void {
    const quietMs = Math.max(throttledUntil - now(), breaker.state === CircuitState.Open ? retryAt - Date.now() : 0)
    if (quietMs > 0) throw brokenCircuit(quietMs)
  }

  function brokenCircuit(quietMs: number): AuthorizationError {
    const seconds = Math.max(1, Math.ceil(quietMs / 1000))
    const last = breaker.lastFailure
    const reason = last && 'error' in last && last.error instanceof AccountsError ? last.error.message : undefined
    return new AuthorizationError(
      'unavailable',
      reason ?? 'Zoho Accounts does not answer at the moment.',
      `Nothing was lost. It is tried again in ${seconds} s.`,
      { retryAfterSeconds: seconds },
    )
  }

  const clientOf = (connection: StoredConnection) => {
    const clientSecret = connection.clientSecret()
    if (clientSecret === undefined)
      throw new AuthorizationError('needs-authorization', 'The secret of the Zoho client is missing.', howToAuthorize)
    return { clientId: connection.clientId, clientSecret }
  }

  /** One at a time in this process too: two waiting for the lock would use up the store's two connections. */
  function exclusively<T>(work: (held: Held) => Promise<T>): Promise<T> {
    const run = turn.then(() => store.exclusively(work))
    turn = run.catch(() => {})
    return run
  }

  /** Saves what Zoho gave. It counts only once it is committed, so it is handed out by the caller, after that. */
  async function save(
    held: Held,
    grant: TokenGrant,
    change: Change,
    used: Pick<Unsaved, 'usedCode' | 'usedRefreshToken'>,
  ): Promise<Minted> {
    const minted = { token: grant.accessToken, lifeMs: grant.expiresInSeconds * 1000 }
    const whole: Change = {
      state: 'connected',
      accessToken: minted,
      ...(grant.refreshToken !== undefined && { refreshToken: grant.refreshToken }),
      ...(grant.scopes !== undefined && { scopes: grant.scopes }),
      ...change,
    }
    unsaved = { change: whole, minted, at: now(), ...used }
    await held.save(whole)
    return minted
  }

  /** After a failure between Zoho's answer and the commit: saves the answer now, unless the row has moved on. */
  async function saveUnsaved({ change, minted, at, usedCode, usedRefreshToken }: Unsaved): Promise<void> {
    await exclusively(async ({ connection, save }) => {
      const isOurs =
        connection !== undefined &&
        (usedCode !== undefined
          ? connection.grantCode() === usedCode
          : !connection.hasGrantCode && connection.refreshToken() === usedRefreshToken)
      if (isOurs)
        await save({
          ...change,
          accessToken: { token: minted.token, lifeMs: Math.max(0, minted.lifeMs - (now() - at)) },
        })
    })
    unsaved = undefined
  }

  /** Under the lock: exchanges or refreshes. A refusal comes back as a value, so that what it saved is committed. */
  async function mint(held: Held, purpose: Purpose): Promise<Minted | AuthorizationError> {
    const connection = demand(held.connection)
    if (!connection.hasGrantCode) return refresh(held, connection, purpose)
    const usedCode = connection.grantCode() as string
    try {
      const { consent } = connection
      const client = consent
        ? { clientId: consent.clientId, clientSecret: consent.clientSecret() }
        : clientOf(connection)
      const grant = await guarded(held, purpose, () => accounts.exchange(client, usedCode, consent?.redirectUri))
      log.info({ scopes: grant.scopes, byConsent: consent !== undefined }, 'tokens.grant-code.exchanged')
      if (consent) await demandOwnAccount(grant)
      const change = { grantCode: null, reasonCode: null, reason: null, ...(consent && { client }) }
      return await save(held, grant, change, { usedCode })
    } catch (error) {
      if (!(error instanceof AccountsError && error.permanent)) throw error
      log.warn({ kind: error.kind, reason: error.message }, 'tokens.grant-code.refused')
      // an earlier grant stays in force
      const hasEarlier = connection.hasRefreshToken && connection.state !== 'needs-reauthorization'
      await held.save({
        grantCode: null,
        reasonCode: error.kind,
        reason: `${error.message} ${error.nextStep}`,
        ...(!connection.hasRefreshToken && { state: 'needs-authorization' }),
      })
      if (!hasEarlier)
        return new AuthorizationError('needs-authorization', error.message, error.nextStep, { cause: error })
      const earlier = { ...connection, hasGrantCode: false }
      return usable(earlier, purpose) ?? (await refresh(held, earlier, purpose))
    }
  }

  /** A link that reached somebody else must not make the user act as them. What cannot be found out is let through. */
  async function demandOwnAccount({ accessToken, refreshToken }: TokenGrant & { refreshToken: string }): Promise<void> {
    if (expectedEmail === undefined) return
    const email = await accounts.emailOf(accessToken)
    if (email === undefined || email.toLowerCase() === expectedEmail) return
    await accounts.revoke(refreshToken).catch(error => log.warn({ err: error }, 'tokens.foreign-grant.not-revoked'))
    throw new AccountsError(
      'account-mismatch',
      `You agreed at Zoho as ${email}, but this user is ${expectedEmail}.`,
      'Sign out at Zoho, ask for a new connect link, and agree with your own account. If both are you, the administrator corrects the e-mail address of the user.',
    )
  }

  async function refresh(
    held: Held,
    connection: StoredConnection,
    purpose: Purpose,
  ): Promise<Minted | AuthorizationError> {
    const usedRefreshToken = connection.refreshToken() as string
    try {
      const grant = await guarded(held, purpose, () => accounts.refresh(clientOf(connection), usedRefreshToken))
      log.info({ purpose }, 'tokens.refreshed')
      // a reason that stands there tells of a grant code refused a moment ago
      const fresh = held.connection?.hasGrantCode ? {} : { reasonCode: null, reason: null }
      return await save(held, grant, fresh, { usedRefreshToken })
    } catch (error) {
      if (!(error instanceof AccountsError && error.permanent)) throw error
      log.warn({ kind: error.kind, reason: error.message }, 'tokens.refresh.refused')
      // the refused token stays: it may be wanted for revoking, or with the right client secret
      await held.save({
        state: 'needs-reauthorization',
        reasonCode: error.kind,
        reason: `${error.message} ${error.nextStep}`,
        accessToken: null,
      })
      cached = undefined
      return new AuthorizationError('needs-reauthorization', error.message, error.nextStep, { cause: error })
    }
  }

  async function obtain(purpose: Purpose): Promise<string> {
    try {
      if (unsaved) await saveUnsaved(unsaved)
      const connection = know(await store.read())
      let found = usable(connection, purpose)
      if (!found) {
        demand(connection)
        checkAccountsServer()
        const result = await exclusively(async held => {
          const current = know(held.connection)
          return usable(current, purpose) ?? (await mint(held, purpose))
        })
        unsaved = undefined
        if (result instanceof AuthorizationError) throw result
        found = result
      }
      if (found.token !== refused) refused = undefined
      return remember(found)
    } catch (error) {
      throw explained(error)
    }
  }

  function explained(error: unknown): AuthorizationError {
    if (error instanceof AuthorizationError) return error
    if (error instanceof BrokenCircuitError) return brokenCircuit(retryAt - Date.now())
    if (error instanceof AccountsError)
      return new AuthorizationError('unavailable', error.message, error.nextStep, {
        cause: error,
        retryAfterSeconds: error.retryAfterSeconds ?? 30,
      })
    if (error instanceof SealError) {
      log.error({ err: error }, 'tokens.unreadable')
      return new AuthorizationError(
        'unavailable',
        error.kind === 'unknown-key'
          ? `The stored tokens cannot be opened: they were ${error.message}.`
          : 'The stored tokens cannot be opened: they were altered.',
        'Start with the key they were sealed with, or authorize again. Nothing was overwritten.',
        { cause: error },
      )
    }
    log.error({ err: error }, 'tokens.store.failed')
    return new AuthorizationError(
      'unavailable',
      'The store of the tokens cannot be reached at the moment.',
      'Try again in some seconds. If it stays so, ask the administrator to look at the database.',
      { cause: error, retryAfterSeconds: 10 },
    )
  }

  /** All callers share one flight; it goes on when one of them leaves. */
  function shared(purpose: Purpose): Promise<string> {
    flight ??= obtain(purpose).finally(() => {
      flight = undefined
    })
    return flight
  }

  const isSettled = (connection: StoredConnection | undefined) =>
    !connection ||
    !(connection.hasGrantCode || (connection.state === 'needs-authorization' && connection.hasRefreshToken))

  async function settle(): Promise<AuthorizationError | undefined> {
    try {
      if (isSettled(await store.read()) && !unsaved) return undefined
      await flight?.catch(() => {})
      // the earlier grant's token says nothing about the new one
      cached = undefined
      await shared('needed')
      return undefined
    } catch (error) {
      return explained(error)
    }
  }

  async function report(failure?: AuthorizationError): Promise<ConnectionReport> {
    know(await store.read())
    const parts = { state: known?.state ?? 'needs-authorization', scopes: known?.scopes ?? [] } as const
    if (failure?.kind === 'unavailable')
      return { ...parts, reasonCode: 'accounts-unavailable', reason: `${failure.message} ${failure.nextStep}` }
    return {
      ...parts,
      reasonCode: known?.reasonCode ?? (known ? null : 'client-missing'),
      reason: known ? known.reason : `There is no Zoho client for this user yet. ${howToAuthorize}`,
    }
  }

  return {
    async accessToken(signal) {
      signal?.throwIfAborted()
      if (cached) {
        const at = now()
        if (cached.expiresAt - at > cached.marginMs) {
          if (at >= cached.refreshAt && !flight) {
            cached.refreshAt = at + aheadPauseMs
            shared('ahead').catch(error => log.info({ err: error }, 'tokens.refresh-ahead.failed'))
          }
          return cached.token
        }
      }
      const last = cached
      try {
        return await untilAborted(shared('needed'), signal)
      } catch (error) {
        if (!(error instanceof AuthorizationError && error.kind === 'unavailable')) throw error
        // an ageing token, or that of the earlier grant, is better than none while Zoho or the store is away
        if (last && last.token !== refused && last.expiresAt - now() > 5_000) return last.token
        const stored = known?.state === 'connected' ? known.accessToken : undefined
        const earlier = stored && stored.lifeMs - (now() - knownAt) > 5_000 ? readToken(stored) : undefined
        if (!earlier) throw error
        return earlier.token
      }
    },

    async invalidate(token) {
      if (cached ? cached.token !== token : refused === token) return
      if (now() - forcedAt < forcedPauseMs) return
      forcedAt = now()
      refused = token
      cached = undefined
    },

    start() {
      const attempt = async () => {
        const failure = await settle()
        if (failure?.kind !== 'unavailable' || closed) return
        log.warn({ reason: failure.message }, 'tokens.authorization.pending')
        startTimer = setTimeout(attempt, Math.min(failure.retryAfterSeconds ?? 10, 30) * 1000)
        startTimer.unref()
      }
      void attempt()
    },

    exchange: async () => report(await settle()),

    async revoke() {
      await flight?.catch(() => {})
      try {
        await exclusively(async held => {
          if (!held.connection) return
          let refreshToken: string | undefined
          try {
            refreshToken = held.connection.refreshToken()
          } catch (error) {
            log.error({ err: error }, 'tokens.revoke.unreadable')
          }
          if (refreshToken !== undefined) await accounts.revoke(refreshToken)
          await held.save({
            state: 'needs-authorization',
            scopes: [],
            refreshToken: null,
            grantCode: null,
            accessToken: null,
            reasonCode: 'revoked',
            reason: `The authorization was revoked. ${howToAuthorize}`,
          })
        })
        cached = undefined
        unsaved = undefined
        log.info('tokens.revoked')
        return { state: 'needs-authorization', scopes: [], reasonCode: null, reason: null }
      } catch (error) {
        return report(explained(error))
      }
    },

    async status() {
      let mints = 0
      let reason: string | null | undefined
      try {
        know(await store.read())
        mints = (await store.mintAgesMs()).length
      } catch (error) {
        reason = explained(error).message
      }
      const expiresAt = known?.accessToken ? knownAt + known.accessToken.lifeMs : cached?.expiresAt
      return {
        state: known?.state ?? 'needs-authorization',
        scopes: known?.scopes ?? [],
        accessTokenExpiresAt: expiresAt === undefined ? null : new Date(expiresAt),
        lastRefreshedAt: known?.lastRefreshedAt ?? null,
        mintsInWindow: mints,
        reason: reason ?? known?.reason ?? null,
        accountsServer: breaker.state === CircuitState.Closed && throttledUntil <= now() ? 'fine' : 'failing',
      }
    },

    async close() {
      closed = true
      clearTimeout(startTimer)
      await flight?.catch(() => {})
      if (unsaved) await saveUnsaved(unsaved).catch(error => log.error({ err: error }, 'tokens.unsaved.lost'))
      await store.close()
    },
  }
}

function untilAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work
  return new Promise((done, failed) => {
    const abort = () => failed(signal.reason)
    signal.addEventListener('abort', abort, { once: true })
    work.then(done, failed).finally(() => signal.removeEventListener('abort', abort))
  })
}
