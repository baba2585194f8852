import { createHash, createHmac, pbkdf2Sync, randomBytes } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import type { Db, Queryable } from './db.ts'
import type { Logger } from './log.ts'

/**
 * What the owner of the database does before a control plane with a role of its own starts: that role can log in, reads
 * and writes what a control plane does, makes the roles of instances, and is neither superuser nor owner of anything.
 * Repeatable; run it after each upgrade, because new tables need their rights.
 */

/** One control plane holds about thirty, with sixteen workers up to 150 (db.ts); an upgrade runs two for a while. */
const connectionLimit = 200

/** Tables with a narrower right than reading and writing. */
const narrower: Record<string, string> = {
  // old events go through audit_forget only
  audit_events: 'select, insert',
  // who migrates is the owner
  schema_migrations: 'select',
}

/**
 * @param db - logged in as the owner of the schema, who may create roles
 * @param role - name and password of the control plane's role
 */
export async function prepareControlPlaneRole(db: Db, role: { name: string; password: string }): Promise<void> {
  await db.withTx(async tx => {
    // two set-ups at once would both create it
    await tx.query("select pg_advisory_xact_lock(hashtext('sdp-mcp control plane role'))")
    const name = await quoted(tx, role.name)
    const [found] = await tx.query('select 1 from pg_roles where rolname = $1', [role.name])
    // a verifier in place of the password keeps it out of the server's log
    await tx.query(
      `${found ? 'alter' : 'create'} role ${name} login nosuperuser createrole nocreatedb noreplication nobypassrls
         connection limit ${connectionLimit} password '${scramVerifier(role.password)}'`,
    )
    const [{ database }] = (await tx.query<{ database: string }>(
      'select quote_ident(current_database()) as database',
    )) as [{ database: string }]
    await tx.query(`grant connect, temporary on database ${database} to ${name}`)
    await tx.query(`grant usage on schema public to ${name}`)
    await grantTables(tx, name)
    await tx.query(`grant usage, select on all sequences in schema public to ${name}`)
    await tx.query(`grant execute on function audit_forget(integer, integer) to ${name}`)
    await tx.query(`grant execute on function end_instance_transactions(integer) to ${name}`)
    // taken from everybody by 0008_tenant_limits.sql, because an instance could hold them; control planes take turns with them
    for (const lock of ['pg_advisory_lock', 'pg_try_advisory_lock', 'pg_advisory_unlock', 'pg_advisory_xact_lock'])
      await tx.query(`grant execute on function ${lock}(bigint) to ${name}`)
    await tx.query(`grant execute on function record_tool_calls(jsonb, uuid) to ${name}`)
    // From PostgreSQL 16 on, who makes a role a member of a group must have been given the group with this option; and
    // who drops a role must have made it, or have been given it. Before, CREATEROLE alone was enough for both.
    const instances = await tx.query<{ name: string }>(
      `select quote_ident(rolname) as name from pg_roles where rolname = 'sdpmcp_instance' or rolname ~ '^sdpmcp_u_[0-9a-f]{32}$'`,
    )
    for (const { name: instance } of instances) await tx.query(`grant ${instance} to ${name} with admin option`)
  })
}

async function grantTables(tx: Queryable, name: string): Promise<void> {
  const tables = await tx.query<{ table: string; ident: string; secured: boolean }>(
    `select c.relname as table, quote_ident(c.relname) as ident, c.relrowsecurity as secured
       from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v')`,
  )
  for (const { table, ident, secured } of tables) {
    await tx.query(`revoke all on ${ident} from ${name}`)
    await tx.query(`grant ${narrower[table] ?? 'select, insert, update, delete'} on ${ident} to ${name}`)
    if (!secured) continue
    // rows of every user; an instance's own policy is another one
    await tx.query(`drop policy if exists control_plane on ${ident}`)
    await tx.query(`create policy control_plane on ${ident} to ${name} using (true) with check (true)`)
  }
}

async function quoted(tx: Queryable, text: string): Promise<string> {
  const [row] = await tx.query<{ ident: string }>('select quote_ident($1) as ident', [text])
  return row!.ident
}

/**
 * The form in which PostgreSQL stores a SCRAM password (RFC 5802, RFC 7677). Sending it in place of the password keeps
 * the password out of the server's statement log.
 */
export function scramVerifier(password: string): string {
  const salt = randomBytes(16)
  const iterations = 4096
  const salted = pbkdf2Sync(password, salt, iterations, 32, 'sha256')
  const hmac = (text: string) => createHmac('sha256', salted).update(text).digest()
  const storedKey = createHash('sha256').update(hmac('Client Key')).digest('base64')
  return `SCRAM-SHA-256$${iterations}:${salt.toString('base64')}$${storedKey}:${hmac('Server Key').toString('base64')}`
}

/**
 * Runs `work`, which is the first to use the database. The database may come up after us; we wait half a minute for it,
 * and say so.
 * @throws Error that says what to check
 */
export async function awaitDatabase(
  { host, port, database, user }: { host: string; port: number; database: string; user: string },
  log: Logger,
  work: () => Promise<void>,
): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work()
    } catch (error) {
      const { code, message } = error as { code?: string; message: string }
      const hopeless = code === '28P01' || code === '28000' || code === '3D000' || code === '42501'
      const waiting =
        ['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'ETIMEDOUT', 'ECONNRESET', '57P03', '53300'].includes(code ?? '') ||
        /timeout|terminated|not currently accepting/i.test(message)
      if (hopeless || !waiting || attempt >= 15)
        throw new Error(
          `the database ${database} at ${host}:${port} cannot be used as ${user}: ${message}. ${
            hopeless
              ? code === '42501'
                ? 'The role may not change the schema: run this program with --prepare-database as the owner first.'
                : 'Check SDP_DB_USER, SDP_DB_PASSWORD and SDP_DB_NAME.'
              : 'Check that PostgreSQL runs there (SDP_DB_HOST, SDP_DB_PORT).'
          }`,
        )
      log.warn({ host, port, attempt, reason: message }, 'database.waiting')
      await delay(2_000)
    }
  }
}
