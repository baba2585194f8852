import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { type DataCenter, dataCenterHosts, scopesFor } from '@sdp-mcp/instance/contract'
import { appendAudit } from './audit.ts'
import type { Config } from './config.ts'
import type { Connections } from './connections.ts'
import type { Db } from './db.ts'
import { AppError } from './errors.ts'
import type { Users } from './users.ts'

/**
 * Authorization with one click: an admin gets a link for a user, the user opens it, agrees at Zoho, and comes back with a
 * code that the user's instance exchanges. Owns table connect_links.
 *
 * A link works for a quarter of an hour and for the first browser that goes on with it, which is told by a cookie. The
 * `state` that travels over Zoho is bound to link and cookie and counts once, so neither a state that somebody else got
 * nor an answer that is sent again connects anything. Of all three only hashes are stored.
 */
export type Consent = ReturnType<typeof createConsent>

export type ConsentAnswer = {
  state?: string | undefined
  code?: string | undefined
  error?: string | undefined
  /** data center of the person's account, as Zoho calls it: `us`, `eu` */
  location?: string | undefined
  'accounts-server'?: string | undefined
}

export const linkLifeSeconds = 15 * 60
const secretPattern = /^[A-Za-z0-9_-]{43}$/
const codePattern = /^[\x21-\x7e]{1,500}$/

const newSecret = () => randomBytes(32).toString('base64url')
const hashOf = (text: string) => createHash('sha256').update(text).digest()

type Dependencies = {
  db: Db
  users: Users
  connections: Pick<Connections, 'authorize'>
  config: Pick<Config, 'consent' | 'publicUrl'>
}

export function createConsent({ db, users, connections, config }: Dependencies) {
  const redirectUri = `${config.publicUrl}/connect/callback`

  function client() {
    if (!config.consent)
      throw new AppError(
        'consent-not-configured',
        `No Zoho client for connect links is configured. Register a server-based client at Zoho's API console with the redirect URI ${redirectUri}, and set SDP_CONSENT_CLIENT_ID and SDP_CONSENT_CLIENT_SECRET_FILE. Until then use POST /v1/users/<username>/authorization.`,
      )
    return config.consent
  }

  /** Every control plane of an installation knows the client's secret; where there is none, there is no answer to tell of. */
  const seal = (text: string) =>
    createHmac('sha256', config.consent?.clientSecret.reveal() ?? randomBytes(32))
      .update(`connect result:${text}`)
      .digest()

  const invalidLink = () =>
    new AppError(
      'connect-link-invalid',
      'This link is not valid: it is older than 15 minutes, was used before, or was opened in another browser. Ask your administrator for a new one.',
    )

  type LinkedUser = { user_id: string; username: string; display_name: string; email: string | null }
  const linkedUser = `join users u on u.id = l.user_id and u.wanted <> 'removed' and not u.suspended`

  return {
    isConfigured: config.consent !== null,

    /** A text for a cookie that nobody but us can make. */
    signed(text: string): string {
      return `${Buffer.from(text).toString('base64url')}.${seal(text).toString('base64url')}`
    },

    /** @returns the text; undefined unless {@link signed} made the cookie */
    verified(cookie: string): string | undefined {
      const [body = '', signature = ''] = cookie.split('.')
      const text = Buffer.from(body, 'base64url').toString('utf8')
      const [expected, given] = [seal(text), Buffer.from(signature, 'base64url')]
      return given.length === expected.length && timingSafeEqual(given, expected) ? text : undefined
    },

    /**
     * Makes a link for a user. Links made before stay valid for their time.
     * @throws AppError `consent-not-configured`, `user-not-found`, `user-suspended`
     */
    async link(name: string, actor: string): Promise<{ url: string; expiresAt: string }> {
      client()
      if ((await users.get(name)).suspended)
        throw new AppError(
          'user-suspended',
          `"${name}" is suspended. Lift it first: PATCH /v1/users/${name} {"suspended": false}.`,
        )
      const userId = await users.idOf(name)
      const token = newSecret()
      return db.withTx(async tx => {
        await tx.query("delete from connect_links where expires_at < now() - interval '1 day'")
        const [row] = await tx.query<{ expires_at: Date }>(
          `insert into connect_links (token_hash, user_id, created_by, expires_at)
           values ($1, $2, $3, now() + make_interval(secs => $4)) returning expires_at`,
          [hashOf(token), userId, actor, linkLifeSeconds],
        )
        const expiresAt = row!.expires_at.toISOString()
        await appendAudit(tx, {
          actor,
          action: 'connection.link-issued',
          username: name,
          userId,
          detail: { expiresAt },
        })
        return { url: `${config.publicUrl}/connect/${token}`, expiresAt }
      })
    },

    /** Whom a link is for; changes nothing, because programs that check links in mails open them, too. */
    async look(
      token: string,
    ): Promise<{ username: string; displayName: string; email: string | null; accountsUrl: string }> {
      const [row] = secretPattern.test(token)
        ? await db.query<LinkedUser>(
            `select u.id as user_id, u.username, u.display_name, u.email from connect_links l ${linkedUser}
              where l.token_hash = $1 and l.expires_at > now() and l.used_at is null`,
            [hashOf(token)],
          )
        : []
      if (!row) throw invalidLink()
      const { accountsUrl } = (await users.settings(row.user_id)).sdp
      return { username: row.username, displayName: row.display_name, email: row.email, accountsUrl }
    },

    /**
     * The browser goes on to Zoho.
     * @param cookie - what this browser was given before, if it was
     * @returns where it goes, and the cookie that it must come back with
     */
    async begin(token: string, cookie: string | undefined): Promise<{ location: string; cookie: string }> {
      const { clientId } = client()
      const browser = cookie !== undefined && secretPattern.test(cookie) ? cookie : newSecret()
      const state = newSecret()
      const [row] = secretPattern.test(token)
        ? await db.query<LinkedUser>(
            `update connect_links l set cookie_hash = $2, state_hash = $3
               from users u where u.id = l.user_id and u.wanted <> 'removed' and not u.suspended
                and l.token_hash = $1 and l.expires_at > now() and l.used_at is null
                and (l.cookie_hash is null or l.cookie_hash = $2)
             returning u.id as user_id, u.username`,
            [hashOf(token), hashOf(browser), hashOf(state)],
          )
        : []
      if (!row) throw invalidLink()
      const { sdp, toolsets, readOnly } = await users.settings(row.user_id)
      const location = new URL('/oauth/v2/auth', sdp.accountsUrl)
      location.search = new URLSearchParams({
        response_type: 'code',
        client_id: clientId,
        scope: scopesFor(toolsets, readOnly).join(','),
        redirect_uri: redirectUri,
        // without both Zoho gives no refresh token the second time
        access_type: 'offline',
        prompt: 'consent',
        state,
      }).toString()
      return { location: location.href, cookie: browser }
    },

    /**
     * The browser comes back from Zoho.
     * @returns the user who is connected now, and what is not as it should be nevertheless
     * @throws AppError `connect-link-invalid`: forged, replayed, late, or from another browser
     * @throws AppError `consent-refused`: the person said no, or Zoho did
     * @throws AppError `data-center-wrong`; and what {@link Connections.authorize} throws
     */
    async finish(
      answer: ConsentAnswer,
      cookie: string | undefined,
    ): Promise<{ username: string; warning: string | null }> {
      const { state } = answer
      const isPlausible = state !== undefined && secretPattern.test(state) && secretPattern.test(cookie ?? '')
      // looked up and used up in one statement: of two who come with one state, one is served
      const [row] = isPlausible
        ? await db.query<LinkedUser>(
            `update connect_links l set state_hash = null
               from users u where u.id = l.user_id and u.wanted <> 'removed' and not u.suspended
                and l.state_hash = $1 and l.cookie_hash = $2 and l.expires_at > now() - interval '10 minutes' and l.used_at is null
             returning u.id as user_id, u.username`,
            [hashOf(state), hashOf(cookie!)],
          )
        : []
      if (!row)
        throw new AppError(
          'connect-link-invalid',
          'This answer from Zoho does not belong to a link that this browser opened, or it was used before. If you were told that you are connected, you are done. Otherwise ask your administrator for a new link.',
        )
      const { user_id: userId, username } = row
      const refuse = async (error: AppError, reason: string): Promise<never> => {
        await appendAudit(db, {
          actor: `user:${username}`,
          action: 'connection.consent-refused',
          username,
          userId,
          detail: { reason },
        })
        throw error
      }
      if (answer.error !== undefined || !codePattern.test(answer.code ?? '')) {
        const reason = /^[a-z_]{1,40}$/.test(answer.error ?? '') ? answer.error! : 'no-code'
        return refuse(
          new AppError(
            'consent-refused',
            reason === 'access_denied'
              ? 'You did not agree at Zoho, so nothing was connected. To connect after all, open the link again.'
              : `Zoho did not allow it ("${reason}"). Tell your administrator; the scopes or the Zoho client may be wrong.`,
          ),
          reason,
        )
      }
      const { sdp } = await users.settings(userId)
      const elsewhere = otherDataCenter(answer, sdp)
      if (elsewhere !== undefined)
        return refuse(
          new AppError(
            'data-center-wrong',
            elsewhere === null
              ? 'The answer names an accounts server that is none of Zoho’s, so it was not used. Ask your administrator for a new link.'
              : `Your Zoho account lives in the data center ${elsewhere}, but you are set up for ${sdp.dataCenter}. Ask your administrator to change it: PATCH /v1/users/${username} {"sdp": {"dataCenter": "${elsewhere}"}}.`,
          ),
          'data-center-wrong',
        )
      const { clientId, clientSecret } = client()
      const { reason: warning } = await connections.authorize(
        username,
        { grantCode: answer.code, consent: { redirectUri, clientId, clientSecret: clientSecret.reveal() } },
        `user:${username}`,
      )
      await db.query('update connect_links set used_at = now() where user_id = $1 and cookie_hash = $2', [
        userId,
        hashOf(cookie!),
      ])
      return { username, warning }
    },
  }
}

/**
 * Where the answer says that the account lives, when that is not where the user's tokens come from. The answer is only
 * compared: a code is never sent to a server that a browser named.
 *
 * @returns undefined: nothing speaks against it; null: a server that is none of Zoho's
 */
function otherDataCenter(
  { location, 'accounts-server': server }: ConsentAnswer,
  sdp: { dataCenter: DataCenter; accountsUrl: string },
): DataCenter | null | undefined {
  const all = Object.entries(dataCenterHosts) as [DataCenter, { accounts: string }][]
  if (server !== undefined) {
    const origin = URL.canParse(server) ? new URL(server).origin : undefined
    if (origin === sdp.accountsUrl) return undefined
    const found = all.find(([, hosts]) => hosts.accounts === origin)?.[0]
    return found === sdp.dataCenter ? undefined : (found ?? null)
  }
  const named = all.find(([name]) => name === location?.toUpperCase())?.[0]
  return named === undefined || named === sdp.dataCenter ? undefined : named
}
