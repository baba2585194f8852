import { describe } from 'vitest'
import { createDockerRuntime } from './docker-runtime.ts'
import { dockerHost, removeEverything, testImage, testInstallation, withoutDocker } from './testing/docker.ts'
import { describeRuntime } from './testing/runtime-contract.ts'
import { silentLog } from './testing/support.ts'

const base = { engine: dockerHost, reach: 'loopback', networkPool: '10.213.0.0/16', log: silentLog } as const

describe.skipIf(withoutDocker)('docker', () => {
  describeRuntime('docker', async () => {
    const installation = testInstallation()
    const image = await testImage()
    const runtime = createDockerRuntime({ ...base, installation })
    return {
      runtime,
      image,
      async dispose() {
        await runtime.close()
        await removeEverything(installation)
      },
    }
  })
})
