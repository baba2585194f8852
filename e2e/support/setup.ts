import { provideDatabase } from '@sdp-mcp/migrations/testing'
import type { TestProject } from 'vitest/node'
import { findEngine, removeInstallation } from '../../control-plane/evaluation/docker-engine.ts'

declare module 'vitest' {
  interface ProvidedContext {
    engine: { host: string; socket: string; hostAddress: string }
  }
}

/** Containers and networks of these tests carry this installation's label; whoever shares an engine takes another one. */
export const testInstallation = process.env.SDP_TEST_INSTALLATION ?? 'e2e'

/** Vitest global set-up: the engine the tests use, and PostgreSQL where containers can reach it. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const engine = await findEngine()
  if (!engine)
    throw new Error(
      'No Docker engine answers at DOCKER_HOST. Run the tests with "npm test", which starts one where it can.',
    )
  project.provide('engine', { host: `unix://${engine.socket}`, socket: engine.socket, hostAddress: engine.hostAddress })
  await removeInstallation(engine, testInstallation)
  const closeDatabase = await provideDatabase(project, [engine.hostAddress])
  return async () => {
    await closeDatabase()
    await removeInstallation(engine, testInstallation)
  }
}
