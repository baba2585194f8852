/** A named behaviour that differs between real sites: what it does, its usual value, the values it may take. */
interface Switch<T> {
  about: string
  value: T
  oneOf?: readonly T[]
}

function flag(value: boolean, about: string): Switch<boolean> {
  return { about, value }
}
function amount(value: number, about: string): Switch<number> {
  return { about, value }
}
function choice<const T extends string | number>(value: NoInfer<T>, oneOf: readonly T[], about: string): Switch<T> {
  return { about, value, oneOf }
}
function names(value: string[], about: string): Switch<string[]> {
  return { about, value }
}

/** Every switch, with its default. The numbers in brackets are sections of docs/sdp-api.md. */
export const switches = {
  // Zoho Accounts
  throttleStatus: choice(200, [200, 400], 'HTTP status of the token throttle answer (2.8)'),
  accessTokenSeconds: amount(3600, 'life of an access token (2.7)'),
  mintsPer10Minutes: amount(10, 'access tokens from one refresh token per 10 min (2.7)'),
  grantCodesPer10Minutes: amount(10, 'grant codes per client per 10 min (2.7)'),
  newRefreshTokensPer10Minutes: amount(10, 'new refresh tokens per user and client per 10 min (2.7)'),
  activeAccessTokens: amount(15, 'access tokens alive per refresh token; the oldest is dropped (2.7)'),
  refreshTokensPerUserAndClient: amount(20, 'the next one deletes the first and its access tokens (2.7)'),
  foreignDataCenter: flag(false, 'the API refuses every token, as another data center would (1.1)'),

  // The door
  plainOperationNames: flag(true, '`close` works as well as `_close` (6)'),
  defaultPortal: flag(false, '/api/v3 without a portal means the default portal, else 404/4007 (1.2)'),
  wrongAccept: choice('415', ['415', 'login-page'], 'answer to a wrong Accept header (1.3)'),
  unauthorizedBody: choice('json', ['json', 'html'], 'body of every 401 of the API (4.4)'),
  badRequestBody: choice('json', ['json', 'html'], 'body of every 400 of the API (4.4)'),
  loginPageInsteadOfJson: flag(false, 'every 2xx body is an HTML login page (4.4)'),
  invisibleRecord: choice(403, [403, 404], 'status for a record outside the view scope of the role'),
  createdStatus: choice('200', ['200', '201'], 'HTTP status of a create (1.5)'),
  editAnswer: choice('whole', ['whole', 'id'], 'what an edit answers: the record as it is now, or its id alone (4.1)'),
  emptyDelete: flag(false, 'DELETE answers 204 without a body (1.5)'),
  statusInEnvelope: choice('4000', ['4000', 'inner'], 'outer status_code of a failure: wrapper or the real code (4.1)'),

  // Rate limit
  rateLimitPerMinute: amount(0, 'calls per minute and user, 0 = no limit (4.5)'),
  rateLimitStatus: choice(400, [400, 429], 'HTTP status of 4015 (4.5)'),
  rateLimitLockSeconds: amount(300, 'how long 4015 lasts (4.5)'),
  rateLimitRetryAfter: flag(false, '4015 carries Retry-After'),

  // Requests
  closeRequires: names(['resolution'], 'fields without which closing answers 3000 (18.4, 18.5)'),
  resolutionFirst: flag(false, 'resolving and closing count a resolution only when it was there before (18.4)'),
  partialStatus: choice(
    'partial_success',
    ['partial_success', 'warning', 'success'],
    'status text of a 3000 answer (4.1)',
  ),
  priorityLocked: flag(false, 'setting priority answers 403/4002 (18.1)'),
  priorityMatrix: flag(false, 'priority follows impact and urgency, setting it answers 403/4002 (7.2)'),
  mandatoryRequestFields: names([], 'more fields a new request must have, as a template asks for them (18.2)'),
  subcategoryWithCategory: flag(false, 'subcategory is mandatory once a category is given (18.2)'),
  assignNeedsCategory: flag(false, 'assigning is refused while category or subcategory is empty (18.11)'),
  unknownRequester: choice('refuse', ['refuse', 'create'], 'an unknown requester e-mail: 4001, or a new user (18.3)'),
  closedTicketsRefuseEdits: flag(true, 'a closed ticket takes a status change and little else (18.9)'),
  myFiltersLeak: flag(false, '`My_*` views give closed tickets and those of the whole group (18.14)'),
  deleteRequest: choice('trash', ['trash', 'purge'], 'what DELETE /requests/{id} does (7.1)'),
  noteRoot: choice('request_note', ['request_note', 'note', 'both'], 'root of a request note (7.3)'),
  repliesRefused: flag(false, 'POST notifications answers 403 and `_links` does not offer it (7.5)'),

  worklogQueryBreaksReferences: flag(false, 'a worklog whose input comes in the query string loses `owner` (1.4)'),

  // Other modules
  changeWorkflow: choice('strict', ['strict', 'loose'], 'whether a change may jump over stages (9)'),
  deleteSolution: choice('purge', ['purge', 'trash-first'], 'whether a solution must be in the trash first (12)'),

  // Lookups and metadata
  statusesEndpoint: choice('ok', ['ok', '401', '404', 'empty'], 'what /statuses answers (17.2)'),
  statusesListKey: choice('statuses', ['statuses', 'status'], 'list key of /statuses (17.2)'),
  prioritiesEndpoint: choice('ok', ['ok', '401'], 'what /priorities answers; 401 is HTML (17.2)'),
  groupsEndpoint: choice('both', ['both', 'groups', 'support_groups'], 'which group path exists (17.2)'),
  usersEndpoint: choice('ok', ['ok', '401', '404'], 'what /users answers (17.1)'),
  techniciansEndpoint: choice('ok', ['ok', '401', '404'], 'what /technicians answers (17.1)'),
  metainfo: choice('ok', ['ok', '401', '403', '404'], 'what `_metainfo` and `_links` answer to OAuth tokens (6)'),
  subcategoryLag: flag(false, 'new subcategories work by name but are not listed (18.12)'),

  // Lists
  rowCountAbove100: choice('cap', ['cap', 'refuse'], 'a row_count above 100 (3.1)'),
  leadingLogicalOperator: choice('ignore', ['ignore', 'refuse'], 'logical_operator on a first criterion (3.3)'),
  nullDateText: flag(false, 'last_updated_time of a row without one is the text "null" (5)'),

  // Attachments
  attachmentLimitBytes: amount(10 * 1024 * 1024, 'largest file (19)'),
} as const satisfies Record<string, Switch<unknown>>

export type SwitchName = keyof typeof switches
type Widen<T> = T extends string | number ? T : T extends boolean ? boolean : T
export type SwitchValues = {
  [K in SwitchName]: (typeof switches)[K] extends Switch<infer T> ? Widen<T> : never
}

export function defaultSwitches(): SwitchValues {
  return Object.fromEntries(
    Object.entries(switches).map(([name, { value }]) => [name, structuredClone(value)]),
  ) as SwitchValues
}

/** Why `value` cannot be the value of `name`; undefined when it can. */
export function switchProblem(name: string, value: unknown): string | undefined {
  if (!Object.hasOwn(switches, name)) return `There is no switch "${name}".`
  const known: Switch<unknown> = switches[name as SwitchName]
  if (known.oneOf && !known.oneOf.includes(value))
    return `"${name}" takes one of: ${known.oneOf.map(one => JSON.stringify(one)).join(', ')}.`
  if (Array.isArray(known.value)) {
    return Array.isArray(value) && value.every(one => typeof one === 'string')
      ? undefined
      : `"${name}" takes a list of strings.`
  }
  return typeof value === typeof known.value ? undefined : `"${name}" takes a ${typeof known.value}.`
}
