import type { IncomingMessage } from 'node:http'
import { createLocalJWKSet, errors, type JWK, jwtVerify } from 'jose'
import { statementClaims, statementIssuer, statementLifeSeconds } from '../contract.ts'
import type { Gate } from './http.ts'

const toleranceSeconds = 5
/** The control plane hands out one statement per purpose for minutes; a handful is plenty. */
const cacheSize = 32

/**
 * Lets in whoever carries a statement signed by the control plane for this very instance and generation, so that a
 * re-used address or port never serves another user. The only importer of jose in this package.
 *
 * A statement that was verified is remembered until it expires: the hot path is one map lookup.
 */
export function statementGate(options: {
  /** Ed25519 public keys as JWK, each with its `kid` */
  keys: Record<string, unknown>[]
  audience: string
  username: string
  now?: () => number
}): Gate {
  const { audience, username, now = Date.now } = options
  const keys = createLocalJWKSet({ keys: options.keys as unknown as JWK[] })
  const verified = new Map<string, { purpose: 'mcp' | 'control'; until: number }>()

  async function verify(statement: string): Promise<'mcp' | 'control'> {
    const { payload } = await jwtVerify(statement, keys, {
      algorithms: ['EdDSA', 'Ed25519'],
      issuer: statementIssuer,
      audience,
      subject: username,
      requiredClaims: ['exp', 'iat'],
      maxTokenAge: statementLifeSeconds,
      clockTolerance: toleranceSeconds,
      currentDate: new Date(now()),
    })
    const { purpose } = statementClaims.parse(payload)
    const ends = Math.min(payload.exp as number, (payload.iat as number) + statementLifeSeconds) + toleranceSeconds
    if (verified.size >= cacheSize) verified.delete(verified.keys().next().value as string)
    verified.set(statement, { purpose, until: ends * 1000 })
    return purpose
  }

  return async (request: IncomingMessage) => {
    const { authorization } = request.headers
    const statement = authorization?.startsWith('Bearer ') ? authorization.slice(7) : undefined
    if (!statement) return refusal('A signed statement of the control plane is required.')
    const known = verified.get(statement)
    if (known) {
      if (known.until > now()) return { purpose: known.purpose }
      verified.delete(statement)
    }
    try {
      return { purpose: await verify(statement) }
    } catch (error) {
      const expired = error instanceof errors.JWTExpired
      return refusal(expired ? 'The statement has expired.' : 'The statement is not valid for this instance.')
    }
  }
}

function refusal(message: string) {
  return {
    status: 401,
    code: 'statement-required',
    message,
    headers: { 'www-authenticate': 'Bearer realm="sdp-mcp instance"' },
  }
}
