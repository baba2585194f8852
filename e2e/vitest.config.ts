import { defineConfig } from 'vitest/config'

// Black box: real containers, real PostgreSQL, real clients; and the tests of modules that need a Docker engine.
export default defineConfig({
  test: {
    root: '.',
    include: ['e2e/**/*.test.ts', '**/*.docker.test.ts'],
    exclude: ['**/node_modules/**', '**/dist/**'],
    globalSetup: ['e2e/support/setup.ts'],
    // they measure and count containers of one engine on two cores: one file at a time
    fileParallelism: false,
    retry: process.env.CI ? 1 : 0,
    testTimeout: 120_000,
    hookTimeout: 240_000,
  },
})
