import type { Boot } from '@sdp-mcp/instance/contract'
import type { Config } from './config.ts'
import { AppError } from './errors.ts'
import type { StatementSigner } from './identity.ts'
import type { Users } from './users.ts'
import type { Vault } from './vault.ts'

/**
 * What an instance is told when it starts: everything about its user, and the secrets it works with. Made anew for each
 * start and kept nowhere.
 *
 * @throws AppError `sdp-settings-missing`, `user-not-found`, `key-unknown`
 */
export function createBoot({
  users,
  vault,
  config,
  signer,
  statementKeys,
}: {
  users: Pick<Users, 'settings'>
  vault: Pick<Vault, 'dataKey' | 'databaseLogin'>
  config: Pick<
    Config,
    | 'runtime'
    | 'instance'
    | 'egress'
    | 'database'
    | 'allowInsecureUpstream'
    | 'allowedUpstreamHosts'
    | 'consent'
    | 'logLevel'
  >
  signer: Pick<StatementSigner, 'egressToken'>
  statementKeys: readonly object[]
}) {
  return async (userId: string, { generation, port }: { generation: number; port: number }): Promise<Boot> => {
    const [settings, dataKey, databaseLogin] = await Promise.all([
      users.settings(userId),
      vault.dataKey(userId),
      vault.databaseLogin(userId),
    ])
    if (settings.sdp.portal === null)
      throw new AppError(
        'sdp-settings-missing',
        `"${settings.username}" has no portal: set sdp.portal, or SDP_INSTANCE_NAME for everybody.`,
      )
    const { id, username, displayName, email } = settings
    return {
      version: 1,
      user: { id, username, displayName, email },
      generation,
      listen: { host: config.runtime === 'docker' ? '0.0.0.0' : '127.0.0.1', port },
      statementKeys: statementKeys as Boot['statementKeys'],
      database: {
        host: config.instance.databaseHost,
        port: config.instance.databasePort,
        database: config.database.database,
        ...databaseLogin,
      },
      dataKey: dataKey.bytes.toString('base64'),
      sdp: { ...settings.sdp, portal: settings.sdp.portal },
      allowInsecureUpstream: config.allowInsecureUpstream,
      allowedUpstreamHosts: [...config.allowedUpstreamHosts],
      ...(config.instance.egress === 'restricted'
        ? {
            egress: {
              proxy: `http://${config.instance.controlPlaneContainer}:${config.egress.port}`,
              token: await signer.egressToken({ userId: id, generation }),
            },
          }
        : {}),
      maxSessions: settings.limits.sessions,
      toolsets: settings.toolsets,
      readOnly: settings.readOnly,
      consentLinks: config.consent !== null,
      logLevel: config.logLevel,
    }
  }
}
