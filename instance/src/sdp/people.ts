import type { InstanceContext } from '../context.ts'
import { AnswerTooLargeError } from '../http-client.ts'
import { Cache } from './cache.ts'
import type { Sdp } from './client.ts'
import { isSdpError, SdpError, type SdpErrorDetails, type SdpErrorKind } from './errors.ts'
import { groupsOf } from './groups.ts'
import { at, flag, isObject, type Json, name as nameOf, parseLossless, text } from './json.ts'
import { all, any, type Condition, contains, criteria, is, type ListInfo } from './list-info.ts'
import { path, type SdpPath } from './path.ts'
import { closest } from './similar.ts'

export type Person = {
  id?: string
  name: string
  email?: string
  isTechnician?: boolean
  isVip?: boolean
  site?: string
  department?: string
  jobTitle?: string
  phone?: string
  roles?: string[]
}
export type PersonKind = 'technician' | 'requester' | 'any'
/** How a write names a person: by id where we know it, else by e-mail, which SDP resolves itself (docs/sdp-api.md 5). */
export type PersonReference = { id: string } | { email_id: string }

export interface People {
  /** The person this instance works for. @throws SdpError when neither Zoho nor the administrator says who that is */
  me(sdp: Sdp): Promise<Person>
  /** Ids of my support groups, kept for ten minutes; empty where the site does not tell. */
  myGroups(sdp: Sdp): Promise<string[]>
  find(sdp: Sdp, query: string, options?: FindOptions): Promise<Person[]>
  /**
   * `me`, an e-mail address, a name or an id.
   * @throws SdpError `invalid-value` with close matches when nobody or several people match
   */
  resolve(
    sdp: Sdp,
    who: string,
    kind: PersonKind,
    field: string,
  ): Promise<{ person: Person; reference: PersonReference }>
}

export type FindOptions = { kind?: PersonKind; group?: string; department?: string; limit?: number }

const maxAgeMs = 10 * 60_000
const meMaxAgeMs = 60 * 60_000
const refusedForMs = 30 * 60_000
const longestIdentity = 64 * 1024

/** Finds people in the order of docs/sdp-api.md 17.1; one per instance. */
export function createPeople(context: Pick<InstanceContext, 'user' | 'tokens' | 'sdp' | 'http' | 'now'>): People {
  const found = new Cache<Person[]>({ size: 300, maxAgeMs, now: context.now })
  const refused = new Cache<true>({ size: 20, maxAgeMs: refusedForMs, now: context.now })
  const groups = new Cache<string[]>({ size: 1, maxAgeMs, now: context.now })
  const self = new Cache<Person>({ size: 1, maxAgeMs: meMaxAgeMs, now: context.now })

  async function find(sdp: Sdp, query: string, options: FindOptions = {}): Promise<Person[]> {
    // SDP is asked as it is written: "J. Smith" and "A. Smith" are two questions
    const key = JSON.stringify([query.trim().toLowerCase(), options])
    const known = found.get(key)
    if (known) return known
    const people = new Map<string, Person>()
    let last: unknown
    let answered = false
    let answeredByList = false
    for (const source of sources(query, options)) {
      if (refused.get(source.path.path) || (answeredByList && source.isLastResort)) continue
      try {
        const page = await sdp.list(source.path, source.info, { probe: source.probe })
        answered = true
        if (!source.isLastResort) answeredByList = true
        for (const person of page.rows.map(row => toPerson(row, source.isTechnician))) {
          const identity = person.id ?? person.email ?? person.name
          people.set(identity, { ...person, ...people.get(identity) })
        }
        // `any` wants both lists, otherwise the first that knows somebody is enough
        if (people.size > 0 && options.kind !== 'any') break
      } catch (error) {
        if (!isSdpError(error, 'missing-scope', 'not-found', 'denied', 'invalid-value', 'drift')) throw error
        if (isSdpError(error, 'missing-scope', 'not-found')) refused.set(source.path.path, true)
        last = error
      }
    }
    if (!answered && last) throw last
    return found.set(key, [...people.values()].slice(0, options.limit ?? 25))
  }

  async function me(sdp: Sdp): Promise<Person> {
    const known = self.get('me')
    if (known) return known
    const identity = context.user.email ? { email: context.user.email } : await zohoIdentity(sdp)
    if (!identity?.email) {
      throw new SdpError('invalid-value', 'It is not known who "me" is: this user has no e-mail address here.', {
        nextStep: `Name the person by e-mail or name; or let the administrator set the e-mail of "${context.user.username}", or authorize again with the scope AaaServer.profile.READ.`,
      })
    }
    const { email } = identity
    const matches = await find(sdp, email, { kind: 'technician' })
      .then(async people => (people.length > 0 ? people : find(sdp, email, { kind: 'requester' })))
      .catch(error => {
        if (isSdpError(error, 'missing-scope', 'not-found', 'denied', 'invalid-value', 'drift')) return []
        throw error
      })
    const exact = matches.find(person => sameEmail(person, email))
    return self.set('me', exact ?? { name: identity.name ?? context.user.displayName, email })
  }

  /** Zoho's own answer; needs the scope AaaServer.profile.READ (docs/sdp-api.md 2.6). */
  async function zohoIdentity(sdp: Sdp): Promise<{ email?: string; name?: string } | undefined> {
    const { scopes } = await context.tokens.status()
    // Zoho does not always tell the scopes; then it is worth one try
    if (scopes.length > 0 && !scopes.some(scope => /^AaaServer\.profile\.(READ|ALL)$/i.test(scope))) return undefined
    const token = await context.tokens.accessToken(sdp.signal)
    const answer = await context
      .http({
        method: 'GET',
        url: new URL('/oauth/user/info', context.sdp.accountsUrl).href,
        headers: { authorization: `Zoho-oauthtoken ${token}` },
        signal: sdp.signal,
        timeoutMs: 10_000,
        maxBytes: longestIdentity,
      })
      .catch(cause => {
        if (sdp.signal.aborted) throw notTold('cancelled', { cause })
        if (cause instanceof AnswerTooLargeError) throw notTold('drift', { cause })
        // what the operator has to allow
        const isRefused = at(cause, 'code') === 'ERR_UPSTREAM_REFUSED'
        throw notTold('down', { cause, ...(isRefused ? { nextStep: `${text(at(cause, 'message'))}.` } : {}) })
      })
    if (answer.status === 429) throw notTold('limited')
    if (answer.status >= 500) throw notTold('down')
    if (!answer.ok) return undefined
    let body: unknown
    try {
      body = parseLossless(answer.bytes.toString('utf8'))
    } catch (cause) {
      throw notTold('drift', { cause })
    }
    return { email: text(at(body, 'Email')), name: text(at(body, 'Display_Name')) }
  }

  return {
    me,
    find,
    async myGroups(sdp) {
      const known = groups.get('mine')
      if (known) return known
      const { id } = await me(sdp)
      return groups.set('mine', id ? await groupsOf(sdp, id) : [])
    },
    async resolve(sdp, who, kind, field) {
      const wanted = who.trim()
      if (wanted.toLowerCase() === 'me') return referenced(await me(sdp))
      if (/^\d{12,}$/.test(wanted)) return { person: { id: wanted, name: wanted }, reference: { id: wanted } }
      const people = await find(sdp, wanted, { kind })
      const found = match(people, wanted)
      if (found.length === 1 && found[0]) return referenced(found[0])
      // SDP itself may know an address that our lookups cannot see; it answers 4001 when it does not
      if (found.length === 0 && isEmail(wanted)) {
        return { person: { name: wanted, email: wanted }, reference: { email_id: wanted } }
      }
      const candidates = found.length > 1 ? found : people
      const others = candidates.length > 0 ? candidates : await find(sdp, wanted.slice(0, 3), { kind })
      throw new SdpError(
        'invalid-value',
        found.length > 1 ? `"${wanted}" fits several people.` : `Nobody called "${wanted}" was found.`,
        {
          fields: [field],
          allowed: found.length > 1 ? found.map(label) : closest(wanted, others.map(label), 5),
          nextStep: 'Give the e-mail address, or look the person up with find_people.',
        },
      )
    },
  }
}

/** A criterion that a field holds this person. */
export function personIs(field: string, reference: PersonReference): Condition {
  return 'id' in reference ? is(`${field}.id`, reference.id) : is(`${field}.email_id`, reference.email_id)
}

/** Whether a user reference of a record means this person. */
export function isPerson(value: unknown, person: Person): boolean {
  const id = text(at(value, 'id'))
  if (id !== undefined && person.id !== undefined) return id === person.id
  return person.email !== undefined && text(at(value, 'email_id'))?.toLowerCase() === person.email.toLowerCase()
}

type Source = { path: SdpPath; info: ListInfo; isTechnician?: boolean; probe?: boolean; isLastResort?: boolean }

function sources(query: string, options: FindOptions): Source[] {
  const { kind = 'any' } = options
  const byEmail = query.includes('@')
  const searched = { [byEmail ? 'email_id' : 'name']: query.trim() }
  const base: ListInfo = { row_count: 25, start_index: 1 }
  const narrowing = all(
    options.department ? is('department.name', options.department) : undefined,
    options.group ? is('groups.name', options.group) : undefined,
  )
  const direct = (list: SdpPath, isTechnician: boolean): Source => ({
    path: list,
    info: { ...base, search_fields: searched, search_criteria: criteria(narrowing) },
    isTechnician,
    probe: true,
  })
  const scoped = (list: SdpPath, isTechnician?: boolean): Source => ({
    path: list,
    info: { ...base, search_criteria: criteria(all(named(query, byEmail), narrowing)) },
    isTechnician,
  })
  const technician = [direct(path`/technicians`, true), scoped(path`/requests/technician`, true)]
  const requester = [direct(path`/requesters`, false), scoped(path`/requests/requester`)]
  const users = scoped(path`/users`)
  const isTechnician = kind === 'any' ? undefined : is('is_technician', kind === 'technician')
  users.info.search_criteria = criteria(all(named(query, byEmail), isTechnician, narrowing))
  users.probe = true
  if (kind === 'technician') return [...technician, users]
  if (kind === 'requester') return [...requester, { ...scoped(path`/users`), probe: true }]
  const [technicians, requesters] = [technician, requester].map(([first]) => first)
  // the request-scoped lookups need no scope of their own, but know less
  const last = [technician, requester].map(([, scoped]) => scoped && { ...scoped, isLastResort: true })
  return [technicians, requesters, users, ...last].filter(source => source !== undefined)
}

function named(query: string, byEmail: boolean): Condition | undefined {
  if (byEmail) return is('email_id', query.trim())
  return any(contains('name', query.trim()))
}

export function toPerson(row: Json, isTechnician?: boolean): Person {
  const email = text(row.email_id) ?? text(row.email)
  return {
    id: text(row.id),
    name: text(row.name) ?? email ?? '',
    email,
    isTechnician: flag(row.is_technician) ?? isTechnician,
    // Cloud spells is_vip_user, on-premises is_vipuser (docs/sdp-api.md 17.1)
    isVip: flag(row.is_vip_user) ?? flag(row.is_vipuser),
    site: nameOf(row.site),
    department: isObject(row.department) ? nameOf(row.department) : text(row.department),
    jobTitle: text(row.job_title),
    phone: text(row.phone) ?? text(row.mobile),
    roles: Array.isArray(row.roles) ? row.roles.map(nameOf).filter(role => role !== undefined) : undefined,
  }
}

function referenced(person: Person): { person: Person; reference: PersonReference } {
  return { person, reference: person.id ? { id: person.id } : { email_id: person.email ?? '' } }
}

/** Whole address or whole name, as written before any other spelling; else whole words of the name. */
function match(people: Person[], wanted: string): Person[] {
  if (isEmail(wanted)) return people.filter(person => sameEmail(person, wanted))
  const name = spelled(wanted)
  if (name === '') return []
  const rules: ((person: Person) => boolean)[] = [
    person => person.name.trim().toLowerCase() === wanted.trim().toLowerCase(),
    person => spelled(person.name) === name,
    person => hasWords(spelled(person.name), name),
  ]
  for (const rule of rules) {
    const found = people.filter(rule)
    if (found.length > 0) return found
  }
  return []
}

/**
 * Lower case, without accents and without dots and commas behind a word. What tells people apart stays: initials, which
 * in a list of choices would be sorting prefixes, and the punctuation inside of names.
 */
function spelled(personName: string): string {
  return personName
    .normalize('NFKD')
    .replace(/\p{M}/gu, '')
    .toLowerCase()
    .replace(/(?<![.,])[.,]+(?=\s|$)/g, '')
    .replace(/\s+/g, ' ')
    .trim()
}

/** Whether words stand in a name as whole words. */
function hasWords(name: string, words: string): boolean {
  const isLetter = (char: string | undefined) => char !== undefined && /[\p{L}\p{N}]/u.test(char)
  for (let at = name.indexOf(words); at >= 0; at = name.indexOf(words, at + 1))
    if (!isLetter(name[at - 1]) && !isLetter(name[at + words.length])) return true
  return false
}

function sameEmail(person: Person, email: string): boolean {
  return person.email?.toLowerCase() === email.trim().toLowerCase()
}

function isEmail(value: string): boolean {
  return /^[^\s@]+@[^\s@]+$/.test(value)
}

function label(person: Person): string {
  return person.email ? `${person.name} <${person.email}>` : person.name
}

function notTold(kind: SdpErrorKind, details: SdpErrorDetails = {}): SdpError {
  return new SdpError(kind, 'Zoho Accounts did not say who you are.', {
    nextStep: `${kind === 'drift' ? 'Name' : 'Try again in some seconds, or name'} the person by e-mail or name.`,
    ...details,
  })
}
