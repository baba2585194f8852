import { type Config, loadConfig } from '../config.ts'

/** Secrets of the control plane under test; no answer and no log line may contain one of them. */
export const testSecrets = {
  adminToken: 'admin-token-Zq81-Lm40-Xw73-Rk26-Vb95',
  masterKey: '3q2+7wABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhs=',
  databasePassword: 'database-password-Hj58',
}

export function testConfig(environment: Record<string, string> = {}): Config {
  return loadConfig({
    SDP_ADMIN_TOKEN: testSecrets.adminToken,
    SDP_MASTER_KEY: testSecrets.masterKey,
    SDP_DB_PASSWORD: testSecrets.databasePassword,
    SDP_INSTANCE_NAME: 'itdesk',
    ...environment,
  })
}
