-- The sealing of the audit trail. It commits after each seal, so it is SECURITY INVOKER without SET, and every name and operator
-- in it is qualified. The functions that it calls ask who calls.
CREATE PROCEDURE totp_audit_seal()
LANGUAGE plpgsql
AS $$
DECLARE
  seal bigint;
  more boolean;
BEGIN
  LOOP
    SELECT step.seal_id, step.is_full INTO seal, more FROM totp.seal_step() AS step;
    COMMIT;
    EXIT WHEN seal IS NULL;
    PERFORM totp.seal_line(seal);
    COMMIT;
    EXIT WHEN NOT more;
  END LOOP;
END
$$;
