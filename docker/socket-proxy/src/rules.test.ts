import { expect, test } from 'vitest'
import { judge, type Policy } from './rules.ts'

const policy: Policy = { installation: 'main', repositories: ['sdp-mcp/instance:1.0'], peers: ['db'] }
const ask = (method: string, url: string, body?: unknown) => {
  const { pathname: path, searchParams: query } = new URL(url, 'http://engine')
  return judge(policy, { method, path, query, body })
}
const container = (host: Record<string, unknown> = {}, more: Record<string, unknown> = {}) => ({
  Image: 'sdp-mcp/instance:dev',
  User: '10001:10001',
  Env: ['SDP_BOOT=stdin'],
  Labels: { 'com.sdp-mcp.installation': 'main' },
  HostConfig: {
    NetworkMode: 'sdp-mcp-main-alice',
    ReadonlyRootfs: true,
    Tmpfs: { '/tmp': 'rw,noexec' },
    CapDrop: ['ALL'],
    SecurityOpt: ['no-new-privileges:true'],
    Privileged: false,
    IpcMode: 'private',
    PidsLimit: 128,
    Memory: 2 ** 28,
    MemorySwap: 2 ** 28,
    OomKillDisable: false,
    NanoCpus: 1e9,
    LogConfig: { Type: 'json-file' },
    RestartPolicy: { Name: 'no' },
    ...host,
  },
  ...more,
})
const create = (body: unknown, name = 'sdp-mcp-main-alice-1') =>
  ask('POST', `/containers/create?name=${name}`, body).allow

test('a container like those of the control plane may be made, and none that differs in what protects the host', () => {
  expect(create(container())).toBe(true)
  expect(create(container({ Dns: ['127.0.0.1'] }))).toBe(true)
  expect(create(container({ PortBindings: { '1/tcp': [{ HostIp: '127.0.0.1', HostPort: '1' }] } }))).toBe(true)
  for (const host of [
    { Privileged: true },
    { privileged: true },
    { Binds: ['/:/host'] },
    { Mounts: [{ Type: 'bind', Source: '/', Target: '/host' }] },
    { VolumesFrom: ['db'] },
    { Devices: [{ PathOnHost: '/dev/sda' }] },
    { CapAdd: ['SYS_ADMIN'] },
    { CapDrop: [] },
    { SecurityOpt: ['no-new-privileges:true', 'apparmor=unconfined'] },
    { NetworkMode: 'host' },
    { NetworkMode: 'container:db' },
    { PidMode: 'host' },
    { IpcMode: 'host' },
    { UsernsMode: 'host' },
    { ReadonlyRootfs: false },
    { Tmpfs: { '/etc': 'rw,noexec' } },
    { PortBindings: { '1/tcp': [{ HostIp: '0.0.0.0', HostPort: '1' }] } },
    { PortBindings: { '1/tcp': [{ HostPort: '1' }] } },
    { Memory: 0, MemorySwap: 0 },
    { MemorySwap: -1 },
    { PidsLimit: 0 },
    { Dns: ['192.0.2.53'] },
    { Runtime: 'other' },
    { LogConfig: { Type: 'syslog', Config: { 'syslog-address': 'tcp://x' } } },
    { RestartPolicy: { Name: 'always' } },
  ])
    expect(create(container(host)), JSON.stringify(host)).toBe(false)
  for (const more of [
    { Image: 'postgres:17' },
    { User: '0:0' },
    { Env: ['SDP_BOOT=stdin', 'LD_PRELOAD=/x'] },
    { Cmd: ['sh'] },
    { Entrypoint: ['sh'] },
    { Labels: { 'com.sdp-mcp.installation': 'other' } },
    { Volumes: { '/x': {} } },
    { hostconfig: { Privileged: true } },
    { NetworkingConfig: {} },
  ])
    expect(create(container({}, more)), JSON.stringify(more)).toBe(false)
  for (const name of ['other', 'sdp-mcp-other-alice-1', 'sdp-mcp-main-../x', ''])
    expect(create(container(), name)).toBe(false)
  for (const body of [undefined, null, [], 'text', {}]) expect(create(body)).toBe(false)
})

test('a network of this installation may lead nowhere, and may have no other option', () => {
  const network = (more: object) =>
    ask('POST', '/networks/create', {
      Name: 'sdp-mcp-main-alice',
      Driver: 'bridge',
      Attachable: false,
      IPAM: { Driver: 'default', Config: [{ Subnet: '10.213.0.0/29' }] },
      Labels: { 'com.sdp-mcp.installation': 'main' },
      ...more,
    }).allow
  expect(network({})).toBe(true)
  expect(network({ Internal: true, Options: { 'com.docker.network.bridge.inhibit_ipv4': 'true' } })).toBe(true)
  for (const refused of [
    { Driver: 'macvlan' },
    { Name: 'sdp-mcp-other-alice' },
    { Options: { 'com.docker.network.bridge.name': 'docker0' } },
    { Options: { 'com.docker.network.bridge.inhibit_ipv4': 'true', parent: 'eth0' } },
    { ConfigFrom: { Network: 'x' } },
  ])
    expect(network(refused)).toBe(false)
})

test('no other call passes', () => {
  for (const [method, path] of [
    ['GET', '/info?x=1'],
    ['GET', '/system/df'],
    ['GET', '/containers/json?all=true'],
    ['GET', '/containers/json?filters={"label":["x"]}'],
    ['GET', '/events'],
    ['GET', '/images/json'],
    ['GET', '/images/postgres:17/json'],
    ['GET', '/images/sdp-mcp/instance-like/json'],
    ['GET', '/secrets'],
    ['GET', '/containers/abc/archive?path=/'],
    ['GET', '/containers/abc/export'],
    ['POST', '/containers/abc/exec'],
    ['POST', '/exec/abc/start'],
    ['POST', '/containers/abc/update'],
    ['POST', '/containers/abc/kill'],
    ['POST', '/containers/abc/attach?stdout=true&logs=true'],
    ['PUT', '/containers/abc/archive?path=/'],
    ['POST', '/build'],
    ['POST', '/images/create?fromImage=x'],
    ['POST', '/volumes/create'],
    ['POST', '/networks/abc/connect'],
    ['POST', '/swarm/init'],
    ['DELETE', '/images/x'],
    ['GET', '/v1.41/v1.41/version'],
    ['GET', '/containers/%61bc/json'],
  ] as const)
    expect(ask(method, path).allow, `${method} ${path}`).toBe(false)
  expect(ask('POST', '/networks/n/connect', { Container: 'stranger' }).allow).toBe(false)
  expect(ask('POST', '/networks/n/connect', { Container: 'db', EndpointConfig: {} }).allow).toBe(false)
})

test('what concerns one container or network passes only if it is ours, peers excepted', () => {
  expect(ask('GET', '/v1.41/containers/abc/json')).toEqual({ allow: true, ours: { kind: 'containers', id: 'abc' } })
  expect(ask('GET', '/containers/db/json')).toEqual({ allow: true })
  expect(ask('POST', '/containers/db/stop?t=1')).toEqual({ allow: true, ours: { kind: 'containers', id: 'db' } })
  expect(ask('DELETE', '/networks/n')).toEqual({ allow: true, ours: { kind: 'networks', id: 'n' } })
  expect(ask('POST', '/networks/n/connect', { Container: 'db' })).toMatchObject({ ours: { kind: 'networks', id: 'n' } })
})
