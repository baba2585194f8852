import { spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { freePort } from '@sdp-mcp/migrations/testing'
import { startSimulator } from '@sdp-mcp/simulator'
import { expect, test } from 'vitest'
import { type Check, listScenarios, runConformance } from '../support/conformance.ts'
import { startKeyAdder } from '../support/key-adder.ts'
import { eventually, startStack } from '../support/stack.ts'

// The official MCP conformance tool against one person's instance, and against the same through the control plane.

const root = dirname(dirname(import.meta.dirname))

const mustPass = [
  'server-initialize',
  'logging-set-level',
  'ping',
  'tools-list',
  'server-sse-multiple-streams',
  'resources-list',
  'prompts-list',
  'dns-rebinding-protection',
]

/** Scenarios that call something only a server made for this tool has, and what it is: they fail for the lack of it alone. */
const needFixture: Record<string, RegExp> = {
  'completion-complete': /Prompt test_prompt_with_arguments not found/,
  'tools-call-simple-text': /"test_simple_text"/,
  'tools-call-image': /"test_image_content"/,
  'tools-call-audio': /"test_audio_content"/,
  'tools-call-embedded-resource': /"test_embedded_resource"/,
  'tools-call-mixed-content': /"test_multiple_content_types"/,
  'tools-call-with-logging': /"test_tool_with_logging"/,
  'tools-call-error': /"test_error_handling"/,
  'tools-call-with-progress': /"test_tool_with_progress"/,
  'tools-call-sampling': /"test_sampling"/,
  'tools-call-elicitation': /"test_elicitation"/,
  'json-schema-2020-12': /'json_schema_2020_12_tool' not found/,
  'elicitation-sep1034-defaults': /"test_elicitation_sep1034_defaults"/,
  'elicitation-sep1330-enums': /"test_elicitation_sep1330_enums"/,
  // calls test_reconnection, with a protocol version before the one that has priming events
  'server-sse-polling': /did not send (priming event|retry field|tool response)/,
  'resources-read-text': /test:\/\/static-text not found/,
  'resources-read-binary': /test:\/\/static-binary not found/,
  'resources-templates-read': /test:\/\/template\/123\/data not found/,
  // of test://watched-resource; subscriptions are optional and not offered: SDP tells nobody of a change, so keeping
  // one would mean to poll the site, at the cost of the person's call limit
  'resources-subscribe': /Method not found/,
  'resources-unsubscribe': /Method not found/,
  'prompts-get-simple': /Prompt test_simple_prompt not found/,
  'prompts-get-with-args': /Prompt test_prompt_with_arguments not found/,
  'prompts-get-embedded-resource': /Prompt test_prompt_with_embedded_resource not found/,
  'prompts-get-with-image': /Prompt test_prompt_with_image not found/,
}

test('every scenario of the tool is decided on', async () => {
  expect((await listScenarios()).sort()).toEqual([...mustPass, ...Object.keys(needFixture)].sort())
})

function expectConformance(results: Map<string, Check[]>, except: string[] = []): void {
  for (const scenario of mustPass.filter(name => !except.includes(name))) {
    const checks = results.get(scenario) ?? []
    expect(
      checks.filter(({ status }) => status !== 'SUCCESS' && status !== 'INFO'),
      scenario,
    ).toEqual([])
    expect(checks.filter(({ status }) => status === 'SUCCESS').length, scenario).toBeGreaterThan(0)
  }
  for (const [scenario, reason] of Object.entries(needFixture)) {
    const others = (results.get(scenario) ?? []).filter(
      ({ status, errorMessage }) => status !== 'SUCCESS' && status !== 'INFO' && !reason.test(errorMessage ?? ''),
    )
    expect(others, scenario).toEqual([])
    expect(results.get(scenario)?.length, scenario).toBeGreaterThan(0)
  }
}

test('an instance that a person runs alone conforms', async () => {
  await using simulator = await startSimulator()
  const folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-alone-'))
  const grant = simulator.createGrantCode({ user: 'carol' })
  const port = await freePort()
  const child = spawn(process.execPath, [join(root, 'instance/src/main.ts'), '--http'], {
    env: {
      PATH: process.env.PATH,
      SDP_BASE_URL: simulator.url,
      SDP_ACCOUNTS_URL: simulator.url,
      SDP_ALLOW_INSECURE_UPSTREAM: 'true',
      SDP_INSTANCE_NAME: 'itdesk',
      SDP_CLIENT_ID: grant.clientId,
      SDP_CLIENT_SECRET: grant.clientSecret,
      SDP_GRANT_CODE: grant.code,
      SDP_STATE_DIR: folder,
      SDP_HTTP_PORT: String(port),
      SDP_ROLE: 'power',
    },
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const ended = new Promise(done => child.once('exit', done))
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    said += chunk
  })
  try {
    await eventually(() => said.includes('claude mcp add') || child.exitCode !== null, {
      withinMs: 30_000,
      what: 'the start',
    })
    expectConformance(await runConformance(`http://127.0.0.1:${port}/mcp`))
  } finally {
    child.kill('SIGTERM')
    await ended
    await rm(folder, { recursive: true, force: true })
  }
})

test('an instance in its container conforms through the proxy of the control plane', async () => {
  await using stack = await startStack()
  const { mcp, key } = await stack.addUser('carol', { role: 'power' })
  await using keyed = await startKeyAdder(mcp, key)
  expectConformance(await runConformance(keyed.url))
})
