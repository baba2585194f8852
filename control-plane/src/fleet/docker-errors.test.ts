import { expect, test } from 'vitest'
import { toRuntimeError } from './docker-errors.ts'

const request = {
  doing: 'starting it',
  engine: 'unix:///run/docker.sock',
  timeoutMs: 30_000,
  image: 'img:1',
  port: 42000,
}
const answered = (statusCode: number, message: string) =>
  Object.assign(new Error(`(HTTP code ${statusCode}) server error - ${message} `), { statusCode })
const socket = (code: string) => Object.assign(new Error(`connect ${code}`), { code })

// as engines of several versions say it
test.each([
  [answered(404, 'No such image: img:1'), 'image-missing', 'docker pull img:1'],
  [
    answered(
      500,
      'driver failed programming external connectivity on endpoint x: Bind for 127.0.0.1:42000 failed: port is already allocated',
    ),
    'port-taken',
    '42000',
  ],
  [
    answered(500, 'Error starting userland proxy: listen tcp4 127.0.0.1:42000: bind: address already in use'),
    'port-taken',
    '42000',
  ],
  [answered(500, 'mkdir /var/lib/docker/overlay2/x: no space left on device'), 'no-space', 'docker system df'],
  [
    answered(403, 'Pool overlaps with other one on this address space'),
    'network-exhausted',
    'SDP_INSTANCE_NETWORK_POOL',
  ],
  [
    answered(400, 'all predefined address pools have been fully subnetted'),
    'network-exhausted',
    'SDP_INSTANCE_NETWORK_POOL',
  ],
  [answered(500, 'something else entirely'), 'refused', 'refused starting it: something else entirely'],
  [answered(409, 'Conflict. The container name is already in use'), 'refused', 'Conflict'],
  [socket('ENOENT'), 'unreachable', 'SDP_DOCKER_SOCKET'],
  [socket('ECONNREFUSED'), 'unreachable', 'Start it'],
  [socket('ECONNRESET'), 'unreachable', 'Start it'],
  [socket('EACCES'), 'unreachable', 'group docker'],
  [new DOMException('timed out', 'TimeoutError'), 'unreachable', '30 s'],
])('%s', (error, kind, part) => {
  const told = toRuntimeError(error, request)
  expect(told).toMatchObject({ kind, cause: error })
  expect(told.message).toContain(part)
})
