/**
 * Which calls of the Docker API pass: those that the control plane's runtime makes, with what it makes them. Everything
 * else is refused, so a new call needs a new rule here. Bodies are checked by lists of what may be in them: a field that
 * nobody thought of is refused, too.
 */

export type Policy = {
  /** value of the label com.sdp-mcp.installation */
  installation: string
  /** images that containers may be made from, whatever their tag */
  repositories: readonly string[]
  /** containers of others that may join our networks and be looked at: the control plane itself, the database */
  peers: readonly string[]
}

export type Verdict =
  | { allow: true; body?: unknown /** must carry our label */; ours?: { kind: 'containers' | 'networks'; id: string } }
  | { allow: false; why: string }

const label = 'com.sdp-mcp.installation'
const user = '10001:10001'
const yes: Verdict = { allow: true }
const no = (why: string): Verdict => ({ allow: false, why })

// names and ids, and images with their repository; nothing encoded, no dots that climb
const name = '([A-Za-z0-9][A-Za-z0-9_.-]{0,200})'
const image = '([A-Za-z0-9][A-Za-z0-9_.:/@-]{0,300})'

type Call = { method: string; path: string; query: URLSearchParams; body: unknown }
type Rule = (policy: Policy, id: string, call: Call) => Verdict

const only = ({ query }: Call, ...names: string[]) => [...query.keys()].every(key => names.includes(key))
const unexpected = no('a part of the call is not expected')
const ownContainer =
  (...parameters: string[]): Rule =>
  (_policy, id, call) =>
    only(call, ...parameters) ? { allow: true, ours: { kind: 'containers', id } } : unexpected
const ownNetwork = (id: string, body?: unknown): Verdict => ({
  allow: true,
  ours: { kind: 'networks', id },
  ...(body === undefined ? {} : { body }),
})
const ofThisInstallation =
  (...parameters: string[]): Rule =>
  (policy, _id, call) =>
    only(call, ...parameters) && isFiltered(policy, call.query)
      ? yes
      : no('ask only for this installation, by its label')

/** Method and path, without the version in front; what is in parentheses is the `id`. */
const rules: [string, Rule][] = [
  ['GET /_ping', () => yes],
  ['GET /version', () => yes],
  // memory of the host; of other things it tells numbers, nothing secret
  ['GET /info', (_policy, _id, call) => (only(call) ? yes : unexpected)],
  ['GET /events', ofThisInstallation('filters')],
  [`GET /images/${image}/json`, (policy, id) => (isOurImage(policy, id) ? yes : no('the image is none of ours'))],
  ['GET /containers/json', ofThisInstallation('all', 'filters')],
  [
    `GET /containers/${name}/json`,
    (policy, id, call) => (policy.peers.includes(id) ? yes : ownContainer()(policy, id, call)),
  ],
  [`GET /containers/${name}/logs`, ownContainer('follow', 'stdout', 'stderr', 'tail')],
  [
    'POST /containers/create',
    (policy, _id, call) =>
      only(call, 'name') ? container(policy, call.query.get('name') ?? '', call.body) : unexpected,
  ],
  [`POST /containers/${name}/start`, ownContainer()],
  [`POST /containers/${name}/stop`, ownContainer('t')],
  [`POST /containers/${name}/attach`, ownContainer('stream', 'stdin', 'hijack')],
  [`DELETE /containers/${name}`, ownContainer('force', 'v')],
  ['GET /networks', (_policy, _id, call) => (only(call, 'filters') ? yes : unexpected)],
  [`GET /networks/${name}`, () => yes],
  ['POST /networks/create', (policy, _id, { body }) => network(policy, body)],
  [
    `POST /networks/${name}/connect`,
    (policy, id, { body }) =>
      policy.peers.includes(String(fields(body, ['Container'])?.Container))
        ? ownNetwork(id, body)
        : no('only the known peers join a network'),
  ],
  [
    `POST /networks/${name}/disconnect`,
    (_policy, id, { body }) => (fields(body, ['Container', 'Force']) ? ownNetwork(id, body) : unexpected),
  ],
  [`DELETE /networks/${name}`, (_policy, id, call) => (only(call) ? ownNetwork(id) : unexpected)],
]
const compiled = rules.map(([call, rule]) => [new RegExp(`^${call}$`), rule] as const)

export function judge(policy: Policy, call: Call): Verdict {
  const path = call.path.replace(/^\/v1\.\d{1,3}(?=\/)/, '')
  if (!/^[A-Za-z0-9/_.:@-]+$/.test(path) || path.includes('..') || path.includes('//')) return no('the path is odd')
  for (const [pattern, rule] of compiled) {
    const found = pattern.exec(`${call.method} ${path}`)
    if (found) return rule(policy, found[1] ?? '', call)
  }
  return no('this call is not one of the control plane’s')
}

type Fields = Record<string, unknown>

/** The object, when it has no other fields than these; the engine reads names without regard to case, we do not. */
function fields(value: unknown, allowed: readonly string[]): Fields | undefined {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined
  return Object.keys(value).every(key => allowed.includes(key)) ? (value as Fields) : undefined
}

const same = (value: unknown, wanted: unknown) => JSON.stringify(value) === JSON.stringify(wanted)
const isBetween = (value: unknown, low: number, high: number) =>
  typeof value === 'number' && value >= low && value <= high

function isFiltered({ installation }: Policy, query: URLSearchParams): boolean {
  try {
    const labels = (JSON.parse(query.get('filters') ?? '') as { label?: unknown }).label
    return Array.isArray(labels) && labels.includes(`${label}=${installation}`)
  } catch {
    return false
  }
}

/** A rollout brings another tag, so the tag does not count; another repository, however alike its name, is another image. */
const isOurImage = ({ repositories }: Policy, wanted: string) =>
  repositories.some(image => repositoryOf(image) === repositoryOf(wanted))

const repositoryOf = (image: string) => image.replace(/@.*$/, '').replace(/:[^/:]*$/, '')

function isOurs({ installation }: Policy, labels: unknown): boolean {
  return (labels as Fields | undefined)?.[label] === installation
}

const containerFields = [
  ...['Image', 'User', 'Env', 'Tty', 'OpenStdin', 'StdinOnce', 'AttachStdin', 'AttachStdout', 'AttachStderr'],
  ...['ExposedPorts', 'HostConfig', 'Labels'],
]
const hostFields = [
  ...['NetworkMode', 'PortBindings', 'ExtraHosts', 'ReadonlyRootfs', 'Tmpfs', 'CapDrop', 'SecurityOpt', 'Privileged'],
  ...['IpcMode', 'PidsLimit', 'Memory', 'MemorySwap', 'OomKillDisable', 'NanoCpus', 'Ulimits', 'Init', 'LogConfig'],
  ...['RestartPolicy', 'Dns'],
]

function container(policy: Policy, containerName: string, body: unknown): Verdict {
  const prefix = `sdp-mcp-${policy.installation}-`
  const given = fields(body, containerFields)
  const host = fields(given?.HostConfig, hostFields)
  if (!given || !host) return no('a field of the container is not expected')
  const checks: Record<string, boolean> = {
    name: containerName.startsWith(prefix) && /^[a-z0-9-]+$/.test(containerName),
    Image: typeof given.Image === 'string' && isOurImage(policy, given.Image),
    User: given.User === user,
    Env: same(given.Env, ['SDP_BOOT=stdin']),
    Labels: isOurs(policy, given.Labels),
    NetworkMode: typeof host.NetworkMode === 'string' && host.NetworkMode.startsWith(prefix),
    PortBindings: publishesOnLoopback(host.PortBindings),
    ReadonlyRootfs: host.ReadonlyRootfs === true,
    Tmpfs: fields(host.Tmpfs, ['/tmp']) !== undefined && /\bnoexec\b/.test(String((host.Tmpfs as Fields)['/tmp'])),
    CapDrop: same(host.CapDrop, ['ALL']),
    SecurityOpt: same(host.SecurityOpt, ['no-new-privileges:true']),
    Privileged: host.Privileged === false,
    IpcMode: host.IpcMode === 'private',
    PidsLimit: isBetween(host.PidsLimit, 1, 4096),
    Memory: isBetween(host.Memory, 1, 64 * 2 ** 30) && host.MemorySwap === host.Memory,
    OomKillDisable: host.OomKillDisable === false,
    NanoCpus: isBetween(host.NanoCpus, 1, 64e9),
    LogConfig: (host.LogConfig as Fields | undefined)?.Type === 'json-file',
    RestartPolicy: same(host.RestartPolicy, { Name: 'no' }),
    Dns: host.Dns === undefined || same(host.Dns, ['127.0.0.1']),
  }
  const wrong = Object.keys(checks).filter(key => !checks[key])
  return wrong.length > 0 ? no(`the container's ${wrong.join(', ')} may not be so`) : { allow: true, body }
}

function publishesOnLoopback(bindings: unknown): boolean {
  if (bindings === undefined) return true
  if (typeof bindings !== 'object' || bindings === null) return false
  return Object.values(bindings).every(
    list => Array.isArray(list) && list.every(one => (one as Fields | null)?.HostIp === '127.0.0.1'),
  )
}

function network(policy: Policy, body: unknown): Verdict {
  const given = fields(body, [
    ...['Name', 'Driver', 'CheckDuplicate', 'Internal', 'Attachable', 'EnableIPv6', 'IPAM', 'Labels', 'Options'],
  ])
  const isFine =
    given &&
    String(given.Name).startsWith(`sdp-mcp-${policy.installation}-`) &&
    given.Driver === 'bridge' &&
    given.Attachable === false &&
    (given.Options === undefined || same(given.Options, { 'com.docker.network.bridge.inhibit_ipv4': 'true' })) &&
    fields(given.IPAM, ['Driver', 'Config']) &&
    (given.IPAM as Fields).Driver === 'default' &&
    isOurs(policy, given.Labels)
  return isFine ? { allow: true, body } : no('only bridge networks of this installation are made')
}

/** Whether what the engine says of a container or network carries our label. */
export function carriesOurLabel(policy: Policy, inspected: unknown): boolean {
  const { Labels, Config } = (inspected ?? {}) as { Labels?: unknown; Config?: { Labels?: unknown } }
  return isOurs(policy, Labels) || isOurs(policy, Config?.Labels)
}
