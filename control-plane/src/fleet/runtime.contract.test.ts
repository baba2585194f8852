import { describe, expect, test } from 'vitest'
import { createProcessRuntime } from './process-runtime.ts'
import { createMemoryEngine, createMemoryRuntime } from './testing/memory-runtime.ts'
import { describeRuntime } from './testing/runtime-contract.ts'
import { answering, eventually, silentLog, testInstanceEntry, testSpec } from './testing/support.ts'

describeRuntime('process', async () => {
  const runtime = createProcessRuntime({ entry: testInstanceEntry, log: silentLog })
  return { runtime, image: 'none', dispose: () => runtime.close() }
})

describeRuntime('memory', async () => {
  const runtime = createMemoryRuntime(createMemoryEngine())
  return { runtime, image: 'none', dispose: () => runtime.close() }
})

describe('processes', () => {
  test('end with the control plane', async () => {
    const runtime = createProcessRuntime({ entry: testInstanceEntry, log: silentLog })
    const started = await runtime.start(await testSpec('none'))
    await answering(started.address, started.userId, 1)
    await runtime.close()
    expect(isAlive(started.id)).toBe(false)
  })

  test('end soon even if the control plane is killed', async () => {
    // a control plane that is killed cannot tidy up: the closed channel must be enough
    const { fork } = await import('node:child_process')
    const parent = fork(new URL('testing/doomed-parent.ts', import.meta.url), {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    })
    const pid = await new Promise<string>(done => parent.once('message', message => done(String(message))))
    expect(isAlive(pid)).toBe(true)
    parent.kill('SIGKILL')
    await eventually('the child has ended', () => !isAlive(pid))
  })

  test('do not see the environment of the control plane', async () => {
    process.env.SDP_MASTER_KEY_OF_TEST = 'secret-of-the-parent'
    const runtime = createProcessRuntime({ entry: testInstanceEntry, log: silentLog, environment: { LANG: 'C' } })
    const started = await runtime.start(await testSpec('none'))
    await answering(started.address, started.userId, 1)
    const { env } = (await (await fetch(`${started.address}/environment`)).json()) as { env: Record<string, string> }
    delete process.env.SDP_MASTER_KEY_OF_TEST
    expect(Object.keys(env).filter(name => name.startsWith('SDP_'))).toEqual(['SDP_BOOT'])
    expect(env.LANG).toBe('C')
    await runtime.close()
  })
})

function isAlive(pid: string): boolean {
  try {
    process.kill(Number(pid), 0)
    return true
  } catch {
    return false
  }
}
