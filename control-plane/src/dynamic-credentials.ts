import { createHash } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { matchesHost } from '@sdp-mcp/instance/contract'
import type { Attempts } from './attempts.ts'
import type { ClientFingerprints } from './client-fingerprints.ts'
import { type Config, Secret } from './config.ts'
import type { Directory, Identity } from './directory.ts'
import { AppError } from './errors.ts'
import type { Logger } from './log.ts'
import type { Users } from './users.ts'

/** An OAuth client that somebody presents in place of an API key, with the site it is meant for. */
export type ClientCredential = {
  clientId: string
  secret: Secret
  /** see ClientFingerprints; made once for each key */
  fingerprintUnder: (keyId?: string) => Buffer | undefined
  /** origin; undefined: the user's own, whatever it is */
  baseUrl: string | undefined
  portal: string | undefined
}

/**
 * Lets clients in by the user's own Zoho OAuth client instead of an API key (SDP_DYNAMIC_CREDENTIALS), on the shared
 * URLs only:
 *
 *     X-SDP-Client-Id, X-SDP-Client-Secret         both, or neither
 *     X-SDP-Base-URL, X-SDP-Instance               the site they are for; must be the user's
 */
export interface DynamicCredentials {
  /**
   * @returns undefined when the request presents none
   * @throws AppError `request-invalid` for half a pair or an impossible value; never repeats the value
   */
  read(request: IncomingMessage): ClientCredential | undefined
  /**
   * Makes sure that the pair belongs to somebody who may come in with it; with `enroll` an unknown one becomes a user.
   * @throws AppError `client-credentials-unknown`, `client-settings-refused`, `too-many-attempts`
   */
  admit(credential: ClientCredential, address: string): Promise<void>
  /** Whose pair it is at the moment. */
  find(credential: ClientCredential): Identity | undefined
  /** An enrollment in another worker, which counts here, too. */
  heardEnrolled(address: string): void
}

const enrollsPerAddress = 5
const hourMs = 3_600_000

export function createDynamicCredentials({
  directory,
  fingerprints,
  users,
  checkCapacity,
  attempts,
  config,
  elapsed = () => performance.now(),
  log,
  tellEnrolled = () => {},
}: {
  directory: Pick<Directory, 'findClient' | 'refresh'>
  fingerprints: Pick<ClientFingerprints, 'of'>
  users: Pick<Users, 'create' | 'idOf' | 'revokeKey' | 'hasClient'>
  /** @throws AppError when no further instance could be started */
  checkCapacity: () => Promise<void>
  attempts: Attempts
  config: Pick<Config, 'dynamicCredentials' | 'sdpDefaults' | 'allowedUpstreamHosts'>
  /** a clock that never jumps, in ms */
  elapsed?: () => number
  log: Logger
  /** takes what other workers must count */
  tellEnrolled?: (address: string) => void
}): DynamicCredentials {
  const { mode, enrollPerHour } = config.dynamicCredentials
  /** of the last hour */
  let enrolled: { at: number; address: string }[] = []
  const enrolling = new Map<string, Promise<void>>()

  const find = ({ clientId, fingerprintUnder }: ClientCredential) => directory.findClient(clientId, fingerprintUnder)

  async function admit(credential: ClientCredential, address: string): Promise<void> {
    attempts.check(address)
    if (!find(credential) && mode === 'enroll') await enrollOnce(credential, address)
    const known = find(credential)
    if (!known) {
      attempts.failed(address)
      throw unknown(mode)
    }
    attempts.succeeded(address)
    const { site } = known
    if (credential.baseUrl !== undefined && credential.baseUrl !== site.baseUrl) throw otherSite('X-SDP-Base-URL')
    if (credential.portal !== undefined && credential.portal !== site.portal) throw otherSite('X-SDP-Instance')
  }

  /** Requests of one new client that come at once make one user. */
  function enrollOnce(credential: ClientCredential, address: string): Promise<void> {
    const slot = credential.fingerprintUnder()!.toString('base64')
    const running = enrolling.get(slot)
    if (running) return running
    const work = enroll(credential, address).finally(() => enrolling.delete(slot))
    enrolling.set(slot, work)
    return work
  }

  async function enroll(credential: ClientCredential, address: string): Promise<void> {
    const { clientId, secret, baseUrl, portal } = credential
    const username = usernameOf(clientId)
    /** Another control plane was quicker, and this one is not told yet. */
    const lookAgain = async () => directory.refresh(await users.idOf(username))
    // whoever has this client id has another secret: somebody else, or a slip of the keyboard
    if (clientId === config.sdpDefaults.clientId) return
    if (await users.hasClient(clientId)) return lookAgain().catch(ignoreUnknown)
    if (baseUrl !== undefined && baseUrl !== config.sdpDefaults.baseUrl && !mayEnrollAt(baseUrl))
      throw new AppError(
        'client-settings-refused',
        'New users may not be enrolled for the site in X-SDP-Base-URL. Leave it out, or ask the operator to allow the host (SDP_ALLOWED_UPSTREAM_HOSTS).',
      )
    countEnrollment(address)
    await checkCapacity()
    const actor = `enrollment from ${address}`
    try {
      const { userId, apiKey } = await users.create(
        { username, sdp: { clientId, clientSecret: secret.reveal(), portal, baseUrl } },
        actor,
      )
      // the client's own pair is the key; the one that comes with every user is told to nobody
      await users.revokeKey(username, apiKey.id, actor)
      await directory.refresh(userId)
      log.info({ username, address }, 'user.enrolled')
    } catch (error) {
      if (!(error instanceof AppError && error.code === 'user-exists')) throw error
      await lookAgain()
    }
  }

  function mayEnrollAt(baseUrl: string): boolean {
    return baseUrl.startsWith('https://') && matchesHost(new URL(baseUrl).hostname, config.allowedUpstreamHosts)
  }

  function countEnrollment(address: string): void {
    const at = elapsed()
    enrolled = enrolled.filter(one => at - one.at < hourMs)
    const ofAddress = enrolled.filter(one => one.address === address)
    const full = enrolled.length >= enrollPerHour ? enrolled : ofAddress.length >= enrollsPerAddress ? ofAddress : null
    if (full)
      throw new AppError(
        'too-many-attempts',
        'Too many new users were enrolled within an hour. Try again later, or ask your admin to add you.',
        { retryAfterSeconds: Math.ceil((full[0]!.at + hourMs - at) / 1000) },
      )
    enrolled.push({ at, address })
    tellEnrolled(address)
  }

  return {
    read({ headers }) {
      const clientId = one(headers['x-sdp-client-id'])
      const secret = one(headers['x-sdp-client-secret'])
      if (clientId === undefined && secret === undefined) return undefined
      const wrong = (name: string, detail: string) =>
        new AppError('request-invalid', `The header ${name} ${detail}. Correct it and connect again.`)
      if (clientId === undefined || !/^[\x21-\x7e]{4,200}$/.test(clientId) || clientId.includes('${'))
        throw wrong('X-SDP-Client-Id', 'must hold the client id as the Zoho API console shows it')
      // a client that knows no such variable sends its name
      if (secret === undefined || !/^[\x21-\x7e]{4,500}$/.test(secret) || secret.includes('${'))
        throw wrong('X-SDP-Client-Secret', 'must hold the client secret as the Zoho API console shows it')
      const site = one(headers['x-sdp-base-url'])
      if (site !== undefined && !(URL.canParse(site) && /^https?:$/.test(new URL(site).protocol)))
        throw wrong('X-SDP-Base-URL', 'must be an address such as https://helpdesk.example.com')
      const portal = one(headers['x-sdp-instance'])
      if (portal !== undefined && !/^[A-Za-z0-9_-]{1,100}$/.test(portal))
        throw wrong('X-SDP-Instance', 'must be the part after /app/ in the address of ServiceDesk Plus')
      const made = new Map<string | undefined, Buffer | undefined>()
      const fingerprintUnder = (keyId?: string) => {
        if (!made.has(keyId)) made.set(keyId, fingerprints.of(clientId, secret, keyId)?.fingerprint)
        return made.get(keyId)
      }
      return {
        clientId,
        secret: new Secret(secret),
        fingerprintUnder,
        baseUrl: site === undefined ? undefined : new URL(site).origin,
        portal,
      }
    },
    admit,
    find,
    heardEnrolled: address => void enrolled.push({ at: elapsed(), address }),
  }
}

/** An empty header is how an unset variable arrives. */
function one(header: string | string[] | undefined): string | undefined {
  const value = [header].flat().join(',').trim()
  return value === '' ? undefined : value
}

/** The same for one client id everywhere and always, so that two enrollments of it cannot both succeed. */
export function usernameOf(clientId: string): string {
  return `client-${createHash('sha256').update(clientId).digest('hex').slice(0, 16)}`
}

function unknown(mode: 'off' | 'known' | 'enroll'): AppError {
  return new AppError(
    'client-credentials-unknown',
    mode === 'enroll'
      ? 'This client id belongs to somebody whose secret is another one, or to several people. Check X-SDP-Client-Secret in your client; after a new secret in the Zoho API console your admin sends it with PATCH /v1/users/<username>.'
      : 'This client id and secret belong to no user here, or to several. Check both in your client; your admin adds you with POST /v1/users (sdp.clientId, sdp.clientSecret), or gives you an API key for "Authorization: Bearer <key>".',
  )
}

/** The client id is not that of an enrolled user. */
function ignoreUnknown(error: unknown): void {
  if (!(error instanceof AppError && error.code === 'user-not-found')) throw error
}

function otherSite(header: string): AppError {
  return new AppError(
    'client-settings-refused',
    `${header} names another site than the one your admin set for you. Leave the header out, or ask your admin to change the site.`,
  )
}
