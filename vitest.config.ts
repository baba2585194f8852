import { defineConfig } from 'vitest/config'

// Unit and integration tests; the black-box tests on a real Docker Engine have their own file in e2e/.
export default defineConfig({
  test: {
    include: ['**/*.test.ts'],
    exclude: ['e2e/**', '**/*.docker.test.ts', '**/node_modules/**', '**/dist/**'],
    globalSetup: ['migrations/testing.ts'],
    // two cores, and PostgreSQL works beside us
    maxWorkers: 2,
    // a machine that others load may starve a test of time once; one that fails twice fails
    retry: process.env.CI ? 1 : 0,
    testTimeout: 20_000,
    hookTimeout: 60_000,
  },
})
