import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { expect, inject, test } from 'vitest'
import { testInstallation } from '../support/setup.ts'

// Benchmarks that nobody runs stop working. Their short forms run here; what they measure on a busy machine says nothing.

test.for(['instance', 'toolpath'])('npm run bench %s ends with a report', { timeout: 240_000 }, async name => {
  const child = spawn(process.execPath, [join(import.meta.dirname, 'main.ts'), name, 'short'], {
    env: { ...process.env, DOCKER_HOST: inject('engine').host, SDP_TEST_INSTALLATION: `${testInstallation}-bench` },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', text => {
      output += text
    })
  const [code] = await once(child, 'exit')
  expect(code, output).toBe(0)
  expect(output).toMatch(/^\|-{3}/m)
  expect(output).not.toContain('NaN')
})
