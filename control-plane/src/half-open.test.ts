import { readFile } from 'node:fs/promises'
import { connect, createServer, type Socket } from 'node:net'
import { expect, test } from 'vitest'
import { unanswered } from './half-open.ts'

// As proc(5) describes it and kernel 6.1 prints it. That a client who vanishes is noticed is proved in e2e/journeys.

const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0D80 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:0D80 0100007F:A1B2 01 00000000:00000000 02:000005DC 00000000     0        0 4712 2 0000000000000000 20 4 30 10 -1
   2: 0100007F:0D80 0200A8C0:A1B3 01 0000001A:00000000 01:00000A00 00000007     0        0 4713 3 0000000000000000 20 4 30 10 -1
   3: 0100007F:0D80 0300A8C0:A1B4 01 0000001A:00000000 01:00000A00 00000006     0        0 4714 3 0000000000000000 20 4 30 10 -1
   4: 0100007F:0D80 0400A8C0:A1B5 04 0000001A:00000000 01:00000A00 0000000A     0        0 0 1 0000000000000000 20 4 30 10 -1
   5: 0100007F:0D80 0500A8C0:A1B6 01 0000001A:00000000 01:00000A00 0000000B     0        0 4715 3 0000000000000000 20 4 30 10 -1
`
const table6 = `   2: 0000000000000000FFFF00000100007F:0D80 0000000000000000FFFF00000200A8C0:C350 01 0000001A:00000000 01:00000A00 00000008 0 0 1
   3: B80D0120000000000000000001000000:0D80 B80D01200000000000000000BC9A7856:C351 01 0000001A:00000000 01:00000A00 00000009 0 0 1
`

test('established connections whose bytes were sent again too often are told, and no others', () => {
  expect(unanswered(table, 7)).toEqual(['3456 192.168.0.2 41395', '3456 192.168.0.5 41398'])
  expect(unanswered(table, 6)).toHaveLength(3)
  expect(unanswered(table6, 7)).toEqual(['3456 192.168.0.2 50000', '3456 2001:db8:0:0:0:0:5678:9abc 50001'])
})

test('the kernel of this machine prints its table as expected', async () => {
  const server = createServer()
  await new Promise<void>(done => server.listen(0, '127.0.0.1', done))
  const { port } = server.address() as { port: number }
  const accepted = new Promise<Socket>(done => server.once('connection', done))
  const client = connect(port, '127.0.0.1')
  const socket = await accepted
  // every established connection, whatever its timer: the same expression without its last condition
  const lines = (await readFile('/proc/net/tcp', 'utf8')).replace(
    / 01 (\S+) \d\d:(\S+) \S{8} /g,
    ' 01 $1 01:$2 0000000F ',
  )
  expect(unanswered(lines, 15)).toContain(`${port} 127.0.0.1 ${socket.remotePort}`)
  client.destroy()
  socket.destroy()
  server.close()
})
